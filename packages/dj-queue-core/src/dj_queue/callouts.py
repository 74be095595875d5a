"""Calls into code that is not ours: a task, a receiver of a signal, a hook, a subscriber.

Such code may fork, and let the child return or raise. The child is then a copy of a runner, with its
connections and its claims, and must not go on as one: it ends here, at once.
"""

import os
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

from dj_queue import forks


def call[**P, R](function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call it, and return or raise what it does, in this process alone."""
    depth = forks.depth
    try:
        returned = function(*args, **kwargs)
    except BaseException as error:
        if forks.depth != depth:
            _end_child(error)
        raise
    if forks.depth != depth:
        _end_child(None)
    return returned


async def call_async[**P, R](function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """The same for a coroutine function: its loop may run in another thread, which a child would never leave."""
    depth = forks.depth
    try:
        returned = await function(*args, **kwargs)
    except BaseException as error:
        if forks.depth != depth:
            _end_child(error)
        raise
    if forks.depth != depth:
        _end_child(None)
    return returned


def _end_child(error: BaseException | None) -> NoReturn:
    """End this process as Python would: with what was asked for, or with 1 and a traceback."""
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            code = 1
            # Not by sys.stderr: another thread of the parent may have held its lock.
            with suppress(Exception):
                os.write(2, "".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
        forks.say_end()
    finally:
        # No handlers of the exit, no destructors: they would say good-bye on the parent's connections.
        os._exit(code & 0xFF)
