"""Runs dj-queue inside gunicorn."""

from dj_queue_gunicorn.hooks import post_fork, worker_exit

__version__ = "1.0.0a1"
__all__ = ["post_fork", "worker_exit"]
