"""The Django app: needed only for the metrics of the runtime."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core import checks
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured


class DjQueuePrometheusConfig(AppConfig):
    name = "dj_queue_prometheus"
    label = "dj_queue_prometheus"
    verbose_name = "dj-queue metrics"

    def ready(self) -> None:
        from dj_queue_prometheus import runtime

        checks.register(check_setting, "dj_queue")
        runtime.register()


def check_setting(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    from dj_queue_prometheus.conf import runtime_metrics

    try:
        runtime_metrics()
    except ImproperlyConfigured as error:
        hint = "Until then, the runtime runs without metrics of its own."
        return [checks.Error(str(error), hint=hint, id="dj_queue_prometheus.E001")]
    return []
