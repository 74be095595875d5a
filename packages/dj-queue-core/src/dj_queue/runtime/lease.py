"""How long a runner may believe that it is alive in the eyes of the others.

The others go by its last heartbeat on the database's clock. A runner goes by the moment before it
sent that heartbeat, on a clock of its own that also runs while the machine sleeps: its lease ends
first, so it has let go of its jobs when somebody else settles them.
"""

import time
from collections.abc import Callable

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# The last tenth of the threshold is for letting go.
_SHARE = 0.9
# The share of the threshold after that in which one last heartbeat may be tried.
GRACE = (1 - _SHARE) / 2
# Seconds in which a slow machine has started a process, whatever the threshold.
_SLOW_START = 5.0


class Lease:
    def __init__(self, threshold: float, on_renew: Callable[[float], None] = lambda _: None) -> None:
        """`on_renew` is told until when, by `now()`, the last heartbeat may be tried."""
        self._seconds = threshold * _SHARE
        # For one last heartbeat, once it is over: the other half of the rest is for letting go.
        self.grace = threshold * GRACE
        self._on_renew = on_renew
        self._until = now() + self._seconds

    def renew(self, sent_at: float) -> None:
        """Count from when a heartbeat was sent that is known to have arrived."""
        self._until = sent_at + self._seconds
        self._on_renew(self._until + self.grace)

    def end(self) -> None:
        self._until = 0.0

    @property
    def remaining(self) -> float:
        return max(0.0, self._until - now())

    @property
    def valid(self) -> bool:
        return now() < self._until


def patience(threshold: float) -> float:
    """How many seconds a runner may take for what it does without a lease: to start, and to leave."""
    return max(threshold, _SLOW_START)


def now() -> float:
    return time.clock_gettime(_CLOCK)
