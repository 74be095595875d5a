"""What a loop sleeps on: a deadline, another thread, a signal, or word from the database."""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Wakeup:
    """Safe to set from any thread and from a signal handler.

    A library that detaches its process closes every descriptor, and whatever is opened next has their numbers. So
    they are looked at before they are used: nothing is read from, or written to, what is another's.
    """

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self._sockets = _identity(self._reader), _identity(self._writer)
        self._sent = False

    def set(self) -> None:
        if not self._sent:
            self._sent = True
            # Full, or closed: either way nobody needs this one more byte.
            with suppress(OSError):
                if _identity(self._writer) == self._sockets[1]:
                    self._writer.send(b"\0")

    def wait(self, seconds: float, descriptor: int | None = None) -> bool:
        """Sleep until set, or `descriptor` is readable, or `seconds` are over.

        Return whether it was the descriptor.
        """
        if self._mended():
            return False  # it may have been set meanwhile
        with self._also(descriptor):
            ready = self._poll.poll(max(0.0, seconds) * 1000)
        if self._mended():
            return False
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        # Only now, or a set() in between would leave the flag up and no byte behind it. It comes before
        # the caller looks for work: what was set until here is found there, what is set later wakes.
        self._sent = False
        return any(fd == descriptor for fd, _ in ready)

    def close(self) -> None:
        if not self._is_whole():
            self._forget()
        self._reader.close()
        self._writer.close()

    def _mended(self) -> bool:
        """Begin anew if the sockets are gone; return whether that was so."""
        if self._is_whole():
            return False
        self.close()
        self._open()
        return True

    def _is_whole(self) -> bool:
        try:
            return (_identity(self._reader), _identity(self._writer)) == self._sockets
        except OSError:
            return False

    def _forget(self) -> None:
        """Leave descriptors alone that are not ours any more."""
        for end, known in zip((self._reader, self._writer), self._sockets, strict=True):
            try:
                if _identity(end) == known:
                    continue
            except OSError:
                pass
            end.detach()

    @contextmanager
    def _also(self, descriptor: int | None) -> Iterator[None]:
        if descriptor is None:
            yield
            return
        self._poll.register(descriptor, select.POLLIN)
        try:
            yield
        finally:
            self._poll.unregister(descriptor)


def _identity(end: socket.socket) -> tuple[int, int]:
    found = os.fstat(end.fileno())
    return found.st_dev, found.st_ino
