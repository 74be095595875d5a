"""The view behind the `metrics` route of `dj_queue.urls`, which has checked method and token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dj_queue import glances, views
from dj_queue.operations.observation import Observation, Unavailable
from dj_queue_prometheus.collector import families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics(request: HttpRequest) -> HttpResponse:
    """What is there to see; 503 if no backend can be read."""
    found = glances.look()
    lost = [each for each in found if isinstance(each, Unavailable)]
    if lost and len(lost) == len(found):
        return views.text(views.unavailable(lost), 503)
    registry = CollectorRegistry()
    registry.register(_Seen(found))
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE)


class _Seen(Collector):
    def __init__(self, found: Sequence[Observation | Unavailable]) -> None:
        self._found = found

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return families(self._found)
