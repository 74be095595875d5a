"""What happened, told once; logs and metrics subscribe.

Every event is one INFO record on the logger `dj_queue`: its message is the event's name, and
its extras are `event` and `dj_queue`, a dictionary of fields. Where INFO is not logged, a failed job is one
line at ERROR instead, in words.
"""

import logging
from collections.abc import Callable
from functools import partial

from dj_queue import callouts

logger = logging.getLogger("dj_queue")

type Subscriber = Callable[[str, dict[str, object]], None]
type Elsewhere = Callable[[Callable[[], object]], object]

_LONGEST = 300

# Replaced, never changed: an `emit` under way goes on with the old one.
_subscribers: dict[str, tuple[Subscriber, ...]] = {}


def emit(event: str, **fields: object) -> None:
    """Tell the log and every subscriber that `event` happened."""
    emit_elsewhere(None, event, **fields)


def emit_elsewhere(elsewhere: Elsewhere | None, event: str, /, **fields: object) -> None:
    """`emit`, but hand what calls the subscribers to `elsewhere`, for another thread to do."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(event, extra={"event": event, "dj_queue": fields})
    elif event == "job.failed":
        # Where nobody has set up logging for us, as in Django's defaults, a failure must not be silent.
        said = str(fields.get("message", "")).strip().split("\n", 1)[0][:_LONGEST]
        logger.error(
            "dj_queue: the job %s of %s failed: %s: %s",
            fields.get("job_id"),
            fields.get("task_path", "a task whose process ended"),
            fields.get("exception_class"),
            said,
            extra={"event": event, "dj_queue": fields},
        )
    if event not in _subscribers:
        return
    if elsewhere is None:
        _deliver(event, fields)
    else:
        elsewhere(partial(_deliver, event, fields))


def _deliver(event: str, fields: dict[str, object]) -> None:
    for subscriber in _subscribers.get(event, ()):
        try:
            callouts.call(subscriber, event, fields)
        except BaseException:  # what is told has happened: nobody who hears of it may undo that, by exiting neither
            logger.exception("dj_queue: a subscriber of %s failed. It must raise nothing.", event)


def heard(*names: str) -> bool:
    """Whether anybody listens to one of these events. The hot path asks once a batch before it builds fields."""
    return logger.isEnabledFor(logging.INFO) or any(name in _subscribers for name in names)


def subscribe(subscriber: Subscriber, *names: str) -> None:
    """Call `subscriber(event, fields)` on every later event of these names, in the emitting thread."""
    global _subscribers
    _subscribers = {**_subscribers, **{name: (*_subscribers.get(name, ()), subscriber) for name in names}}


def unsubscribe(subscriber: Subscriber) -> None:
    """Call it no more."""
    global _subscribers
    left = {name: tuple(each for each in found if each != subscriber) for name, found in _subscribers.items()}
    _subscribers = {name: found for name, found in left.items() if found}
