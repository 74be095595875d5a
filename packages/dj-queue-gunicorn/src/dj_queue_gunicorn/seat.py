"""One seat among the workers of a server, and a list of those who sat on it.

Nobody's word is taken for who sits there: it is a lock on an unlinked file, which the arbiter opened and
every worker inherited. The kernel gives a record lock to one process, and takes it back when that process
ends, however it ends. Unlike with `flock`, no process that a worker forks holds it as well.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile

_ID = struct.Struct("=q")
# The byte whose lock is the seat. Every other byte is the life of the supervisor with that id.
_SEAT = 0


class Seat:
    def __init__(self) -> None:
        # Open for as long as the server is there.
        self._file, path = tempfile.mkstemp(prefix="dj-queue-gunicorn-")
        os.unlink(path)
        self._mine: set[int] = set()

    def take(self) -> bool:
        """Sit down, if nobody sits there or it is us; return whether we sit."""
        return self._lock(_SEAT)

    def leave(self) -> None:
        """Let somebody else sit down."""
        self._unlock(_SEAT)

    @property
    def used(self) -> bool:
        """Whether anybody has ever entered."""
        return bool(self._entries())

    # ---- who sat there, by the ids of their supervisors' process rows ----

    def enter(self, supervisor_id: int) -> None:
        """Note that this supervisor lives for as long as this process does. Only who sits may call this."""
        self._mine.add(supervisor_id)
        self._lock(supervisor_id)
        entries = self._entries()
        free = entries.index(0) if 0 in entries else len(entries)
        os.pwrite(self._file, _ID.pack(supervisor_id), free * _ID.size)

    def strike(self, supervisor_id: int) -> None:
        """Note that nothing of this supervisor is left."""
        self._replace(supervisor_id, 0)
        self._mine.discard(supervisor_id)
        self._unlock(supervisor_id)

    def bequeath(self, supervisor_id: int) -> None:
        """Note that this supervisor has stopped in order, and that what its threads still run may be given back
        once this process is gone."""
        self._replace(supervisor_id, -supervisor_id)

    def dead(self) -> dict[int, bool]:
        """The supervisors whose processes have ended for certain and which nobody has struck: in order, or not."""
        entries = {abs(entry): entry < 0 for entry in self._entries() if entry}
        return {known: order for known, order in entries.items() if known not in self._mine and self._lock(known)}

    # ---- steps ----

    def _replace(self, supervisor_id: int, entry: int) -> None:
        for n, entered in enumerate(self._entries()):
            if abs(entered) == supervisor_id:
                os.pwrite(self._file, _ID.pack(entry), n * _ID.size)

    def _entries(self) -> list[int]:
        size = os.fstat(self._file).st_size
        return [entered for (entered,) in _ID.iter_unpack(os.pread(self._file, size, 0))]

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # another process holds it
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
