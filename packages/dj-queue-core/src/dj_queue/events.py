"""What happened, told once; logs and metrics subscribe.

Every event is one INFO record on the logger `dj_queue`: its message is the event's name, and
its extras are `event` and `dj_queue`, a dictionary of fields.
"""

import logging
from collections.abc import Callable

logger = logging.getLogger("dj_queue")

type Subscriber = Callable[[str, dict[str, object]], None]

_subscribers: list[Subscriber] = []


def emit(event: str, **fields: object) -> None:
    """Tell the log and every subscriber that `event` happened."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(event, extra={"event": event, "dj_queue": fields})
    for subscriber in _subscribers:
        subscriber(event, fields)


def heard() -> bool:
    """Whether anybody listens. The hot path asks once a batch before it builds fields."""
    return bool(_subscribers) or logger.isEnabledFor(logging.INFO)


def subscribe(subscriber: Subscriber) -> None:
    """Call `subscriber(event, fields)` on every later event, in the emitting thread."""
    _subscribers.append(subscriber)
