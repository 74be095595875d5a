"""The Django app."""

from django.apps import AppConfig, apps
from django.core import checks


class DjQueueAdminConfig(AppConfig):
    name = "dj_queue_admin"
    verbose_name = "dj-queue admin"

    def ready(self) -> None:
        from dj_queue_admin import options

        checks.register(options.check, "dj_queue")
        queue = apps.get_app_config("dj_queue")
        queue.verbose_name = _First(queue.verbose_name)


class _First(str):
    """A name that the admin, which sorts apps by their names' lower case, lists before all others."""

    __slots__ = ()

    def lower(self) -> str:
        return ""
