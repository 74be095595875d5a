"""UUIDv7 job ids, made by the process that enqueues.

They sort by time, so inserts land at the end of the primary key, and 62 random bits keep a
result's id from being guessed. Python has `uuid.uuid7` only from 3.14 on.
"""

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

_lock = threading.Lock()
_last_tick = 0

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62
_RANDOM_BITS = (1 << 62) - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def uuid7() -> UUID:
    """Return a UUIDv7 that is greater than every earlier one of this process."""
    global _last_tick
    # A tick is a 4096th of a millisecond: 48 bits of Unix milliseconds and the 12 bits of rand_a
    # (RFC 9562, method 3).
    tick = time.time_ns() * 4096 // 1_000_000
    with _lock:
        # A clock that stands still or is set back must not undo the order.
        if tick <= _last_tick:
            tick = _last_tick + 1
        _last_tick = tick
    random = int.from_bytes(os.urandom(8)) & _RANDOM_BITS
    return UUID(int=(tick >> 12) << 80 | _VERSION | (tick & 0xFFF) << 64 | _VARIANT | random)


def earliest_at(moment: datetime) -> UUID:
    """Return the least UUIDv7 of a moment: those made before it are less."""
    tick = max(0, int(moment.timestamp() * 1_000_000)) * 4096 // 1000
    return UUID(int=(tick >> 12) << 80 | _VERSION | (tick & 0xFFF) << 64 | _VARIANT)


def time_of(job_id: UUID) -> datetime:
    """When an id was made, by the clock of the host that enqueued the job."""
    tick = (job_id.int >> 80) * 4096 + (job_id.int >> 64 & 0xFFF)
    return _EPOCH + timedelta(microseconds=tick * 1000 // 4096)
