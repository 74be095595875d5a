"""An operator's console for dj-queue in Django's admin."""

__version__ = "1.0.0a1"
