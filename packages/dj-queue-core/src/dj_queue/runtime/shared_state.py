"""What a runner tells its supervisor without a database: its row, the last claim that it started, its life, its end.

It lies in memory that both share, so that it can still be read when the process was killed. So does whatever
a task forks: only the process of the runner itself may write.
"""

import mmap
import struct

from dj_queue import forks

# Native: each number is written at once, and not byte by byte.
_NUMBER = struct.Struct("@q")
_TIME = struct.Struct("@d")
_STARTED, _PROCESS, _END, _UNTIL = (n * _NUMBER.size for n in range(4))


class SharedState:
    """One runner's, from its start to its end: the next one in its place gets a fresh one.

    Claims are started in the order of their ids, so one number says which were.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 4 * _NUMBER.size)
        self._writer = forks.depth

    def take(self) -> None:
        """From now on this process, and no other, writes here."""
        self._writer = forks.depth

    @property
    def started_up_to(self) -> int:
        return self._read(_STARTED)

    @property
    def process_id(self) -> int | None:
        """The runner's process row, or None if it never told, or has none any more."""
        return self._read(_PROCESS) or None

    @process_id.setter
    def process_id(self, process_id: int | None) -> None:
        self._write(_PROCESS, process_id or 0)

    @property
    def end(self) -> int | None:
        """How the runner said that it ended; None if it said nothing, whatever its exit code."""
        said = self._read(_END)
        return said - 1 if said else None

    @end.setter
    def end(self, end: int) -> None:
        self._write(_END, end + 1)

    @property
    def until(self) -> float:
        """When the runner will have moved this on, or have ended, by the clock of leases; else it hangs."""
        moment: float = _TIME.unpack_from(self._memory, _UNTIL)[0]
        return moment

    @until.setter
    def until(self, moment: float) -> None:
        if forks.depth == self._writer:
            _TIME.pack_into(self._memory, _UNTIL, moment)

    def started(self, claim_id: int) -> None:
        """Note a start, before it happens. The caller sees to it that threads do so one at a time."""
        if claim_id > self.started_up_to:
            self._write(_STARTED, claim_id)

    def _read(self, offset: int) -> int:
        number: int = _NUMBER.unpack_from(self._memory, offset)[0]
        return number

    def _write(self, offset: int, number: int) -> None:
        if forks.depth == self._writer:
            _NUMBER.pack_into(self._memory, offset, number)
