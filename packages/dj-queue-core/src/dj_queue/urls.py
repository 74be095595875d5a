"""`path("dj_queue/", include("dj_queue.urls"))`: what monitoring asks of a queue."""

from django.http import HttpRequest, HttpResponse
from django.urls import path

from dj_queue import views
from dj_queue.exceptions import MissingAddonError

app_name = "dj_queue"


@views.guarded
def metrics(request: HttpRequest) -> HttpResponse:
    """Answered by dj-queue-prometheus, where that is installed."""
    try:
        from dj_queue_prometheus.exposition import metrics as answer
    except ModuleNotFoundError as error:
        if error.name != "dj_queue_prometheus":
            raise  # it is installed, and broken
        return views.text(str(MissingAddonError.of("dj-queue-prometheus")), 503)
    return answer(request)


urlpatterns = [
    path("stats.json", views.stats, name="stats"),
    path("metrics", metrics, name="metrics"),
    path("health/live", views.live, name="live"),
    path("health/ready", views.ready, name="ready"),
]
