"""The queue inside an ASGI server: no process of its own, here with uvicorn."""

from project import get, serve, wait_for

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from dj_queue.contrib.asgi import DjQueueLifespan
from dj_queue.models import Process
from tasks import add, pid


def enqueue(request):
    result = pid.enqueue()
    return HttpResponse(result.id)


settings.ROOT_URLCONF = __name__
urlpatterns = [path("", enqueue)]

# This is all: in your project it stands in asgi.py.
application = DjQueueLifespan(get_asgi_application())


if __name__ == "__main__":
    with serve("uvicorn", "ex25_advanced_asgi:application", "--port={port}", "--log-level=warning") as url:
        result = pid.get_result(get(url))
        wait_for(lambda: result.refresh() or result.is_finished)
        supervisor = Process.objects.get(kind="Supervisor")
        print("a request enqueued a job:", result.status)
        print("the server's own process ran it:", result.return_value == supervisor.pid)
        print("its supervisor is", supervisor.metadata["mode"], "and standalone:", supervisor.metadata["standalone"])
    print("after the server's end:", Process.objects.count(), "processes")
    print("and a job waits for the next one:", add.enqueue(1, 2).status)
