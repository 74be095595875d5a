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
    """Enqueue `{"task": path, "args": [...]}`."""
    given = json.loads(request.body)
    result = import_string(given["task"]).enqueue(*given["args"])
    return JsonResponse({"id": result.id, "pid": os.getpid()})


async def aenqueue(request: HttpRequest) -> JsonResponse:
    given = json.loads(request.body)
    result = await import_string(given["task"]).aenqueue(*given["args"])
    return JsonResponse({"id": result.id, "pid": os.getpid()})


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
