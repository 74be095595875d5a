"""What a runner tells its supervisor without a database: its process row, and the last claim that it started.

It lies in memory that both share, so that it can still be read when the process was killed.
"""

import mmap
import struct

# Native: each number is written at once, and not byte by byte.
_IDS = struct.Struct("@qq")


class Board:
    """Claims are started in the order of their ids, so one number says which were."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _IDS.size)

    @property
    def started_up_to(self) -> int:
        return self._read()[0]

    @property
    def process_id(self) -> int | None:
        """The runner's process row, or None if it never told."""
        return self._read()[1] or None

    @process_id.setter
    def process_id(self, process_id: int) -> None:
        _IDS.pack_into(self._memory, 0, self.started_up_to, process_id)

    def started(self, claim_id: int) -> None:
        """Note a start, before it happens. The caller sees to it that threads do so one at a time."""
        if claim_id > self.started_up_to:
            _IDS.pack_into(self._memory, 0, claim_id, self._read()[1])

    def clear(self) -> None:
        _IDS.pack_into(self._memory, 0, 0, 0)

    def _read(self) -> tuple[int, int]:
        return _IDS.unpack_from(self._memory)
