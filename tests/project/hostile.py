"""Tasks that leave their thread, their connection or their process as no task should."""

import contextvars
import ctypes
import os
import sys
import threading
from typing import Any

from django.core.cache import caches
from django.db import connections, transaction
from django.tasks import task
from django.utils import timezone, translation

from tests.project.models import Run

tenant = contextvars.ContextVar("tenant", default="nobody")
_kept: list[Any] = []


class LateError(BaseException):
    """What a library raises in a thread, to end a call that takes too long."""


@task
def be_ended_late() -> int:
    """Return, and have an exception raised in the thread a little later."""
    thread_id = threading.get_ident()

    def end() -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(LateError))

    threading.Timer(0.1, end).start()
    return thread_id


@task
def return_thread() -> int:
    return threading.get_ident()


def _open_block() -> Any:
    with transaction.atomic():
        Run.objects.create(label="in a block that was left open")
        yield


@task
def leave_open(how: str) -> None:
    """Leave the thread's connection in a transaction, or unusable."""
    if how == "block":
        block = transaction.atomic()
        block.__enter__()
        _kept.append(block)
        Run.objects.create(label="in a block that was left open")
    elif how == "nested blocks":
        for _ in range(2):
            block = transaction.atomic()
            block.__enter__()
            _kept.append(block)
    elif how == "generator of a task that fails":
        blocks = _open_block()
        next(blocks)
        raise ValueError("the generator lives in this frame")
    elif how == "generator in a cycle":
        cycle: list[Any] = [_open_block()]
        cycle.append(cycle)
        next(cycle[0])
    elif how == "closed in the block":
        block = transaction.atomic()
        block.__enter__()
        _kept.append(block)
        connections["default"].close()
    elif how == "autocommit off":
        transaction.set_autocommit(False)
        Run.objects.create(label="in a block that was left open")
    elif how == "statement":
        with connections["default"].cursor() as cursor:
            cursor.execute("BEGIN")
        Run.objects.create(label="in a block that was left open")
    elif how == "closed below":
        connections["default"].ensure_connection()
        connections["default"].connection.close()
    else:
        raise AssertionError(how)


LEFT_OPEN = [
    "block",
    "nested blocks",
    "generator of a task that fails",
    "generator in a cycle",
    "closed in the block",
    "autocommit off",
    "statement",
    "closed below",
]


@task
def set_context(name: str) -> list[str]:
    seen = look()
    tenant.set(name)
    translation.activate("fi")
    timezone.activate("Asia/Tokyo")
    return seen


@task
async def set_context_async(name: str) -> list[str]:
    seen = look()
    tenant.set(name)
    translation.activate("fi")
    timezone.activate("Asia/Tokyo")
    return seen


@task
def look_around() -> list[str]:
    return look()


def look() -> list[str]:
    return [tenant.get(), str(translation.get_language()), timezone.get_current_timezone_name()]


@task
def cache_identity() -> int:
    """Which object this thread's connection to the cache is."""
    return id(caches["default"])


def _leave_child(how: str) -> Any:
    if how == "raises":
        raise ValueError("in the child")
    if how == "exits":
        sys.exit(7)
    return "from the child"


def _status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@task
def fork(how: str) -> Any:
    """Fork, and let the child come back out of the task; return how it ended."""
    child = os.fork()
    return _status_of(child) if child else _leave_child(how)


@task
def fork_and_forget() -> int | None:
    """Fork, let the child come back out of the task, and wait for nobody."""
    return os.fork() or None


@task
async def fork_and_forget_async() -> int | None:
    return os.fork() or None


@task
async def fork_async(how: str) -> Any:
    child = os.fork()
    return _status_of(child) if child else _leave_child(how)
