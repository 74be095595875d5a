"""The tasks that stored paths name, as far as this process can import them."""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

from dj_queue.exceptions import TaskPathError
from dj_queue.operations import results

# Seconds until what could not be imported is tried again.
_TRY_AGAIN: Final = 60.0
_MOST: Final = 2_000


class Looked(NamedTuple):
    """What came of importing a path."""

    task: Any  # None if that is not possible here
    obstacle: str  # why it is not; else empty
    until: float  # on the monotonic clock


_looked: dict[str, Looked] = {}


def look(path: str) -> Looked:
    """Import the task. Remembered, as pages ask again and again: what failed, for a minute."""
    known = _looked.get(path)
    if known is not None and time.monotonic() < known.until:
        return known
    if len(_looked) >= _MOST:
        _looked.clear()
    _looked[path] = found = _import(path)
    return found


def is_known(path: str) -> bool:
    """Whether to look costs no import."""
    return path in _looked and time.monotonic() < _looked[path].until


def _import(path: str) -> Looked:
    try:
        return Looked(results.resolve(path), "", float("inf"))
    except TaskPathError as error:
        obstacle = str(error)
    except BaseException as error:  # a module may raise anything, and a page is no place to end the server for it
        obstacle = f"cannot import the task {path!r}: {type(error).__name__}"
    return Looked(None, obstacle, time.monotonic() + _TRY_AGAIN)
