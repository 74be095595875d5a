"""The promised path of `DjQueueLifespan`, which the distribution dj-queue-asgi holds."""

from dj_queue.exceptions import MissingAddonError

try:
    from dj_queue_asgi import DjQueueLifespan
except ModuleNotFoundError as error:
    if error.name != "dj_queue_asgi":
        raise  # it is there, and broken: its own error says how
    raise MissingAddonError.of("dj-queue-asgi") from error

__all__ = ["DjQueueLifespan"]
