"""Prometheus metrics of dj-queue."""

__version__ = "1.0.0a1"
