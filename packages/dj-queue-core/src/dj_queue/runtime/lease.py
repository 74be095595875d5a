"""How long a runner may believe that it is alive in the eyes of the others.

The others go by its last heartbeat on the database's clock. A runner goes by the moment before it
sent that heartbeat, on a clock of its own that also runs while the machine sleeps: its lease ends
first, so it has let go of its jobs when somebody else settles them.
"""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# The last tenth of the threshold is for letting go.
_SHARE = 0.9


class Lease:
    def __init__(self, threshold: float) -> None:
        self._seconds = threshold * _SHARE
        # For one last heartbeat, once it is over: the other half of the rest is for letting go.
        self.grace = (threshold - self._seconds) / 2
        self._until = now() + self._seconds

    def renew(self, sent_at: float) -> None:
        """Count from when a heartbeat was sent that is known to have arrived."""
        self._until = sent_at + self._seconds

    def end(self) -> None:
        self._until = 0.0

    @property
    def remaining(self) -> float:
        return max(0.0, self._until - now())

    @property
    def valid(self) -> bool:
        return now() < self._until


def now() -> float:
    return time.clock_gettime(_CLOCK)
