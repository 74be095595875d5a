"""The collector of dj-queue-prometheus and a registry that holds it; both None where that is not installed."""

try:
    from dj_queue_prometheus import DjQueueCollector, registry
except ModuleNotFoundError as error:
    if error.name != "dj_queue_prometheus":
        raise  # it is installed, and broken
    DjQueueCollector = registry = None  # type: ignore[assignment,misc]

__all__ = ["DjQueueCollector", "registry"]
