"""A database-backed task queue for Django's Tasks framework."""

__version__ = "1.0.0a1"
