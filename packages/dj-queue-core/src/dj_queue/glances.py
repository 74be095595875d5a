"""One look at every backend for all who ask at the same time, as `stats.json` and the metrics do.

Who may look without a token is anybody: where a look takes long, what they see may be a second old.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from dj_queue.config import backend_config, managed_aliases, observability_token
from dj_queue.operations.observation import Observation, Unavailable, observe_all

# Seconds that a look is kept for those who need no token, and from which duration on.
KEPT: Final = 1.0
LONG: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Glance:
    aliases: tuple[tuple[str, str], ...]
    seen: list[Observation | Unavailable]
    began: float  # on the monotonic clock, as all here
    until: float


class Glances:
    """The last look, and who is at it."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._last: _Glance | None = None

    def look(self) -> list[Observation | Unavailable]:
        """What every backend looks like, by a look that began after the call, or by a recent one."""
        arrived = time.monotonic()
        is_open = observability_token() is None
        configs = [backend_config(alias) for alias in managed_aliases()]
        aliases = tuple((config.alias, config.database_alias) for config in configs)
        with self._one_at_a_time:
            last = self._last
            recent = last is not None and (last.began >= arrived or (is_open and time.monotonic() < last.until))
            if last is not None and recent and last.aliases == aliases:
                return last.seen
            began = time.monotonic()
            seen = observe_all(configs)
            ended = time.monotonic()
            self._last = _Glance(aliases, seen, began, ended + KEPT if ended - began > LONG else ended)
            return seen


_glances = Glances()


def look() -> list[Observation | Unavailable]:
    """What every backend of dj-queue's looks like: never more than one look at a time."""
    return _glances.look()
