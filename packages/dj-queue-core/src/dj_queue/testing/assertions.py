"""What is enqueued, and assertions about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.utils.json import normalize_json

from dj_queue.config import backend_config
from dj_queue.models import Job
from dj_queue.operations import results
from dj_queue.types import AnyTask, AnyTaskResult

_MOST_SHOWN = 20


def enqueued_jobs(queue_name: str | None = None, *, backend_alias: str = "default") -> list[AnyTaskResult]:
    """The jobs that wait to run, as results, in the order of their enqueueing: ready, scheduled or blocked."""
    config = backend_config(backend_alias)
    waiting = Job.objects.using(config.database_alias).filter(
        backend_alias=config.alias, finished_at=None, claimed_execution=None, failed_execution=None
    )
    if queue_name is not None:
        waiting = waiting.filter(queue_name=queue_name)
    return [results.get(config, str(job_id)) for job_id in waiting.order_by("id").values_list("id", flat=True)]


def assert_enqueued(
    task: AnyTask,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue_name: str | None = None,
    run_after: datetime | None = None,
    backend_alias: str = "default",
) -> AnyTaskResult:
    """Assert that a job of the task waits to run, with what is given; return the first one's result.

    Arguments are compared as they are stored: a tuple is a list. Raises `AssertionError`, which shows what waits.
    """
    found = _matching(task, args, kwargs, queue_name, run_after, backend_alias)
    if not found:
        wanted = _shown(task, args, kwargs, queue_name, run_after)
        raise AssertionError(f"expected a job of {wanted}\ngot {_listed(enqueued_jobs(backend_alias=backend_alias))}")
    return found[0]


def assert_not_enqueued(
    task: AnyTask,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue_name: str | None = None,
    run_after: datetime | None = None,
    backend_alias: str = "default",
) -> None:
    """Assert that no job of the task waits to run, or none with what is given."""
    if found := _matching(task, args, kwargs, queue_name, run_after, backend_alias):
        wanted = _shown(task, args, kwargs, queue_name, run_after)
        raise AssertionError(f"expected no job of {wanted}\ngot {_listed(found)}")


def _matching(
    task: AnyTask,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    queue_name: str | None,
    run_after: datetime | None,
    backend_alias: str,
) -> list[AnyTaskResult]:
    return [
        each
        for each in enqueued_jobs(queue_name, backend_alias=backend_alias)
        if each.task.module_path == task.module_path
        and (args is None or each.args == normalize_json(list(args)))
        and (kwargs is None or each.kwargs == normalize_json(dict(kwargs)))
        and (run_after is None or each.task.run_after == run_after)
    ]


def _shown(
    task: AnyTask,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    queue_name: str | None,
    run_after: datetime | None,
) -> str:
    given = {"args": args, "kwargs": kwargs, "queue_name": queue_name, "run_after": run_after}
    parts = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    return f"{task.module_path} with {', '.join(parts)}" if parts else task.module_path


def _listed(jobs: Sequence[AnyTaskResult]) -> str:
    if not jobs:
        return "no job at all. Was it enqueued by a transaction that has not committed, or has it run already?"
    lines = [_shown(each.task, each.args, each.kwargs, each.task.queue_name, each.task.run_after) for each in jobs]
    more = [f"and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else []
    return "\n".join([f"{len(lines)} waiting:", *(f"  {line}" for line in [*lines[:_MOST_SHOWN], *more])])
