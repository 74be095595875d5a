"""Functions that run when a supervisor, worker, dispatcher or scheduler starts, stops and exits.

`start` comes after the process is registered, `stop` before it brings its work to an end, `exit` after
its row is gone. Each hook is called with the live supervisor or runner, which offers `name`, `kind`,
`pid`, `hostname`, `metadata`, `backend_alias` and `supervisor`.
"""

from collections.abc import Callable
from typing import Any, overload

from dj_queue import callouts
from dj_queue.config import BackendConfig
from dj_queue.error_reporting import report

type Hook = Callable[[Any], object]

EVENTS = tuple(
    f"{kind}.{moment}"
    for kind in ("supervisor", "worker", "dispatcher", "scheduler")
    for moment in ("start", "stop", "exit")
)

_hooks: dict[str, list[Hook]] = {event: [] for event in EVENTS}


@overload
def register_hook(event: str) -> Callable[[Hook], Hook]: ...
@overload
def register_hook(event: str, fn: Hook) -> Hook: ...
def register_hook(event: str, fn: Hook | None = None) -> Hook | Callable[[Hook], Hook]:
    """Call `fn` on every later `event`, after the hooks registered before it; also a decorator.

    Raises `ValueError` for an event there is not.
    """
    _require_known(event)
    if fn is None:
        return lambda given: register_hook(event, given)
    _hooks[event].append(fn)
    return fn


def clear_hooks(event: str | None = None) -> None:
    """Forget the hooks of one event, or all. Raises `ValueError` for an event there is not."""
    if event is not None:
        _require_known(event)
    for name in EVENTS if event is None else (event,):
        _hooks[name].clear()


def run_hooks(event: str, process: Any, config: BackendConfig, *, until: Callable[[], bool] = bool) -> None:
    """Call every hook in order. One that fails is reported, and does not keep the others from running.

    Only `until`, asked before each, does.
    """
    for hook in tuple(_hooks[event]):
        if until():
            return
        try:
            callouts.call(hook, process)
        except BaseException as error:  # a hook that exits must not end what others rely on
            report(config, error, f"hook:{event}")


def _require_known(event: str) -> None:
    if event not in _hooks:
        raise ValueError(f"{event!r} is no hook event. Use one of {', '.join(EVENTS)}.")


def _helper(event: str) -> Callable[[Hook], Hook]:
    def register(fn: Hook) -> Hook:
        return register_hook(event, fn)

    register.__doc__ = f"Call the decorated function on `{event}`."
    return register


on_start = _helper("supervisor.start")
on_stop = _helper("supervisor.stop")
on_exit = _helper("supervisor.exit")
on_worker_start = _helper("worker.start")
on_worker_stop = _helper("worker.stop")
on_worker_exit = _helper("worker.exit")
on_dispatcher_start = _helper("dispatcher.start")
on_dispatcher_stop = _helper("dispatcher.stop")
on_dispatcher_exit = _helper("dispatcher.exit")
on_scheduler_start = _helper("scheduler.start")
on_scheduler_stop = _helper("scheduler.stop")
on_scheduler_exit = _helper("scheduler.exit")
