"""The queue inside gunicorn: one of its workers hosts the supervisor, and another follows when that one goes."""

from project import FOLDER, get, serve, wait_for

import os
import signal

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from dj_queue.models import Process
from tasks import pid


def enqueue(request):
    result = pid.enqueue()
    return HttpResponse(result.id)


settings.ROOT_URLCONF = __name__
urlpatterns = [path("", enqueue)]
application = get_wsgi_application()


def host_of_next_job(url):
    result = pid.get_result(get(url))
    wait_for(lambda: result.refresh() or result.is_finished)
    return result.return_value


if __name__ == "__main__":
    # The hooks are all that gunicorn.conf.py has.
    config = f"--config={FOLDER / 'gunicorn.conf.py'}"
    bind = "--bind=127.0.0.1:{port}"
    with serve(
        "gunicorn", "ex26_advanced_gunicorn:application", config, bind, "--workers=2", "--log-level=error"
    ) as url:
        host = host_of_next_job(url)
        print("supervisors in two workers:", Process.objects.filter(kind="Supervisor").count())
        os.kill(host, signal.SIGKILL)
        successor = host_of_next_job(url)
        print("the host was killed, and another worker followed:", successor != host)
        wait_for(lambda: not Process.objects.filter(pid=host).exists())
        print("what the host had registered is settled at once")
    print("after the server's end:", Process.objects.count(), "processes")
