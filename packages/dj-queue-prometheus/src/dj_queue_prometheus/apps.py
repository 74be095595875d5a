"""The Django app: needed only for the metrics of the runtime."""

from __future__ import annotations

from ipaddress import ip_address
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
        checks.register(check_open_address, "dj_queue", checks.Tags.security, deploy=True)
        runtime.register()


def check_setting(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    from dj_queue_prometheus.conf import runtime_metrics

    try:
        runtime_metrics()
    except ImproperlyConfigured as error:
        hint = "Until then, the runtime runs without metrics of its own."
        return [checks.Error(str(error), hint=hint, id="dj_queue_prometheus.E001")]
    return []


def check_open_address(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    from dj_queue.config import TOKEN_SETTING, observability_token
    from dj_queue_prometheus.conf import runtime_metrics

    try:
        metrics, token = runtime_metrics(), observability_token()
    except ImproperlyConfigured:
        return []  # other checks tell
    if token is not None or not metrics.ports or ip_address(metrics.address).is_loopback:
        return []
    text = (
        f"The runtime serves its metrics on {metrics.address} to everybody who reaches it: they name queues and tasks."
    )
    hint = f"Set {TOKEN_SETTING}, or listen on 127.0.0.1 or behind a firewall."
    return [checks.Warning(text, hint=hint, id="dj_queue_prometheus.W001")]
