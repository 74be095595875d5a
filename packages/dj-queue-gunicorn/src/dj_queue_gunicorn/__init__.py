"""Runs dj-queue inside gunicorn."""

__version__ = "1.0.0a1"
