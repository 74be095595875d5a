"""The Django app."""

from django.apps import AppConfig


class DjQueueConfig(AppConfig):
    name = "dj_queue"
    label = "dj_queue"
    verbose_name = "dj-queue"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Importing django.tasks registers Django's own check of every task backend.
        import django.tasks  # noqa: F401

        from dj_queue import checks

        checks.register()
