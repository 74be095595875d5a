"""What a loop sleeps on: a deadline, another thread, a signal, or word from the database."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Wakeup:
    """Safe to set from any thread and from a signal handler."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        self._sent = False

    def set(self) -> None:
        if not self._sent:
            self._sent = True
            # Full, or closed: either way nobody needs this one more byte.
            with suppress(OSError):
                self._writer.send(b"\0")

    def wait(self, seconds: float, descriptor: int | None = None) -> bool:
        """Sleep until set, or `descriptor` is readable, or `seconds` are over.

        Return whether it was the descriptor.
        """
        with self._also(descriptor):
            ready = self._poll.poll(max(0.0, seconds) * 1000)
        with suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
        # Only now, or a set() in between would leave the flag up and no byte behind it. It comes before
        # the caller looks for work: what was set until here is found there, what is set later wakes.
        self._sent = False
        return any(fd == descriptor for fd, _ in ready)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

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
