"""Runs dj-queue inside an ASGI server."""

__version__ = "1.0.0a1"
