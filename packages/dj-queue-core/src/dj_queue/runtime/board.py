"""What a worker process tells its supervisor without a database: the last claim that it started.

It lies in memory that both share, so that it can still be read when the process was killed.
"""

import mmap
import struct

_CLAIM_ID = struct.Struct("=q")


class Board:
    """Claims are started in the order of their ids, so one number says which were."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _CLAIM_ID.size)

    @property
    def started_up_to(self) -> int:
        claim_id: int = _CLAIM_ID.unpack_from(self._memory)[0]
        return claim_id

    def started(self, claim_id: int) -> None:
        """Note a start, before it happens. The caller sees to it that threads do so one at a time."""
        if claim_id > self.started_up_to:
            _CLAIM_ID.pack_into(self._memory, 0, claim_id)

    def clear(self) -> None:
        _CLAIM_ID.pack_into(self._memory, 0, 0)
