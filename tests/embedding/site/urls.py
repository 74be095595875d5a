"""Enqueue over HTTP, and say who answers."""

import json
import os
import time

from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils.module_loading import import_string

from tests.project.models import Run


def enqueue(request: HttpRequest) -> JsonResponse:
    """Enqueue `{"task": path, "args": [...], "times": number}`."""
    given = json.loads(request.body)
    task = import_string(given["task"])
    return JsonResponse({"ids": [task.enqueue(*given["args"]).id for _ in range(given["times"])], "pid": os.getpid()})


async def aenqueue(request: HttpRequest) -> JsonResponse:
    given = json.loads(request.body)
    task = import_string(given["task"])
    ids = [(await task.aenqueue(*given["args"])).id for _ in range(given["times"])]
    return JsonResponse({"ids": ids, "pid": os.getpid()})


def pid(request: HttpRequest) -> JsonResponse:
    Run.objects.exists()
    # With DEBUG, what this thread's connection has seen during this request.
    return JsonResponse({"pid": os.getpid(), "queries": len(connection.queries)})


def block(request: HttpRequest, seconds: int) -> JsonResponse:
    """Keep the worker busy until gunicorn loses its patience."""
    time.sleep(seconds)
    return JsonResponse({"pid": os.getpid()})


urlpatterns = [
    path("enqueue", enqueue),
    path("aenqueue", aenqueue),
    path("pid", pid),
    path("block/<int:seconds>", block),
]
