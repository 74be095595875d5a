"""Runs dj-queue inside an ASGI server."""

from dj_queue_asgi.lifespan import DjQueueLifespan

__version__ = "1.0.0a1"
__all__ = ["DjQueueLifespan"]
