"""One part of what a runner does. What the database refuses of it holds up no other part, and ends no runner."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from django.db import Error

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue.error_reporting import report

# Seconds between attempts: doubled each time, with jitter.
_FIRST_RETRY = 0.1
_LONGEST_RETRY = 10.0
# Seconds after which the same refusal is told of again.
_TELL_AGAIN = 60.0

# What is raised where a row cannot be read.
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
# A statement that was refused, or a row that could not be read.
REFUSED = (Error, *UNREADABLE)


class Part:
    """Does its work at every step, but not before its time after it was refused."""

    def __init__(self, config: BackendConfig, context: str) -> None:
        self._config, self._context = config, context
        self._failures = 0
        self._next = 0.0  # on the monotonic clock
        self._told: tuple[str, float] = ("", 0.0)

    def __call__[T](self, work: Callable[[], T], default: T, *, at_once: bool = False) -> T:
        """Return what `work` does, or the default. Raises the error of a database that is away.

        With `at_once` it waits for no time: this may be the last one.
        """
        if time.monotonic() < self._next and not at_once:
            return default
        try:
            done = work()
        except REFUSED as error:
            if isinstance(error, Error) and dialect_for(self._config.database_alias).is_away(error):
                raise
            self.refused(error)
            return default
        self._failures = 0
        return done

    def refused(self, error: Exception) -> float:
        """Tell of a refusal, with the database's own words; return how many seconds to wait."""
        self._failures += 1
        wait = backoff(self._failures)
        self._next = time.monotonic() + wait
        words, told_at = self._told
        if str(error) != words or time.monotonic() - told_at > _TELL_AGAIN:
            self._told = (str(error), time.monotonic())
            report(self._config, error, self._context)
        return wait

    @property
    def wait(self) -> float:
        """Seconds until it is tried again; 0.0 where it was not refused."""
        return max(0.0, self._next - time.monotonic()) if self._failures else 0.0


def backoff(failures: int) -> float:
    """How many seconds to wait after this number of failures in a row."""
    longest = min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** min(failures - 1, 10))
    return random.uniform(longest / 2, longest)
