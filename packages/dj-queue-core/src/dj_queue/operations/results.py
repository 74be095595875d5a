"""From stored jobs to Django's tasks and results."""

import json
import logging
from datetime import datetime
from functools import cache, lru_cache
from types import FunctionType
from typing import Any
from uuid import UUID

from django.tasks import Task, TaskResult, TaskResultStatus, signals
from django.tasks.base import TaskError
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils.module_loading import import_string

from dj_queue import callouts
from dj_queue.annotations import AnyTask, AnyTaskResult
from dj_queue.config import BACKEND_PATH, BackendConfig
from dj_queue.dialects import Claim
from dj_queue.exceptions import TaskPathError
from dj_queue.serialization import describe

logger = logging.getLogger("dj_queue")


def get(config: BackendConfig, result_id: str) -> AnyTaskResult:
    """Read a result. Raises `TaskResultDoesNotExist` for every id this alias does not have."""
    from dj_queue.models import Job

    try:
        job_id = UUID(str(result_id))
    except ValueError as error:
        raise TaskResultDoesNotExist(result_id) from error
    related = ("claimed_execution__process", "failed_execution")
    jobs = Job.objects.using(config.database_alias).select_related(*related)
    job = jobs.filter(pk=job_id, backend_alias=config.alias).first()
    if job is None:
        raise TaskResultDoesNotExist(result_id)
    result = new(
        stored_task(job.task_path, job.queue_name, job.priority, job.scheduled_at, job.backend_alias),
        job.id,
        job.payload.get("args", []),
        job.payload.get("kwargs", {}),
        enqueued_at=job.created_at,
        started_at=job.started_at,
        last_attempted_at=job.last_attempted_at,
        worker_ids=list(job.worker_ids or []),
        errors=[TaskError(exception_class_path=path, traceback=text) for path, text in job.errors or []],
    )
    claim = getattr(job, "claimed_execution", None)
    failure = getattr(job, "failed_execution", None)
    if job.finished_at is not None:
        succeed(result, job.finished_at, job.return_value)
    elif failure is not None:
        path, text = failure.exception_class, failure.traceback
        fail(result, failure.created_at, TaskError(exception_class_path=path, traceback=text))
    elif claim is not None:
        start(result, claim.created_at, claim.process.name if claim.process else "")
    return result


def new(
    task: AnyTask,
    job_id: UUID,
    args: Any,
    kwargs: Any,
    *,
    enqueued_at: datetime | None,
    started_at: datetime | None = None,
    last_attempted_at: datetime | None = None,
    worker_ids: list[str] | None = None,
    errors: list[TaskError] | None = None,
) -> AnyTaskResult:
    """Return the result of a job that is neither running nor done."""
    return TaskResult(
        task=task,
        id=str(job_id),
        status=TaskResultStatus.READY,
        enqueued_at=enqueued_at,
        started_at=started_at,
        finished_at=None,
        last_attempted_at=last_attempted_at,
        args=args,
        kwargs=kwargs,
        backend=task.backend,
        errors=errors or [],
        worker_ids=worker_ids or [],
    )


def claimed(claim: Claim, alias: str) -> AnyTaskResult:
    """Return the result of a claim, not yet started. Its task raises `TaskPathError` if there is none."""
    task = stored_task(claim.task_path, claim.queue_name, claim.priority, claim.scheduled_at, alias)
    payload = json.loads(claim.payload)
    return new(
        task,
        claim.job_id,
        payload["args"],
        payload["kwargs"],
        enqueued_at=claim.created_at,
        started_at=claim.started_at,
        worker_ids=json.loads(claim.worker_ids) if claim.worker_ids else [],
        errors=[
            TaskError(exception_class_path=path, traceback=text) for path, text in json.loads(claim.errors or "[]")
        ],
    )


def start(result: AnyTaskResult, at: datetime, worker: str) -> None:
    _set(
        result,
        status=TaskResultStatus.RUNNING,
        started_at=result.started_at or at,
        last_attempted_at=at,
    )
    result.worker_ids.append(worker)


def succeed(result: AnyTaskResult, at: datetime, value: Any) -> None:
    _set(result, status=TaskResultStatus.SUCCESSFUL, finished_at=at, _return_value=value)


def fail(result: AnyTaskResult, at: datetime, error: TaskError) -> None:
    _set(result, status=TaskResultStatus.FAILED, finished_at=at)
    result.errors.append(error)


def resolve(path: str) -> AnyTask:
    """Import the task that a job names. Raises `TaskPathError` if there is none."""
    try:
        found = import_string(path)
    except (Exception, SystemExit) as error:  # a module may fail to import in any way
        raise TaskPathError(
            f"cannot import the task {path!r}: {describe(error).message}."
            " Deploy the code that has it, or discard the job."
        ) from error
    if not isinstance(found, Task):
        raise TaskPathError(
            f"{path!r} is a {type(found).__name__}, not a task. Decorate it with @task, or discard the job."
        )
    return found


def stored_task(path: str, queue_name: str, priority: int, run_after: datetime | None, alias: str) -> AnyTask:
    """Return the task of a stored job, a stand-in where its code is gone."""
    try:
        task = resolve(path)
    except TaskPathError as error:
        task = _stand_in(path, error)
    return variant(task, queue_name, priority, run_after, alias)


def variant(task: AnyTask, queue_name: str, priority: int, run_after: datetime | None, alias: str) -> AnyTask:
    """Return the task as it was enqueued."""
    if run_after is None:
        return _usual_variant(task, queue_name, priority, alias)
    return _copy(task, queue_name, priority, run_after, alias)


@lru_cache(maxsize=1024)
def _usual_variant(task: AnyTask, queue_name: str, priority: int, alias: str) -> AnyTask:
    return _copy(task, queue_name, priority, None, alias)


def _copy(task: AnyTask, queue_name: str, priority: int, run_after: datetime | None, alias: str) -> AnyTask:
    # Not `using()`: that validates, and a stored job outlives the settings it was validated by.
    copy = object.__new__(type(task))
    for name in task.__dataclass_fields__:
        object.__setattr__(copy, name, getattr(task, name))
    _set(copy, queue_name=queue_name, priority=priority, run_after=run_after, backend=alias)
    return copy


def _stand_in(path: str, error: TaskPathError) -> AnyTask:
    def missing(*_: Any, **__: Any) -> Any:
        raise error

    module, _, name = path.rpartition(".")
    func = FunctionType(missing.__code__, globals(), name, None, missing.__closure__)
    func.__module__, func.__qualname__ = module, name
    task = object.__new__(Task)
    _set(task, func=func, takes_context=False, priority=0, queue_name="", run_after=None, backend="")
    return task


def _set(instance: Any, **values: Any) -> None:
    """Set fields of Django's frozen dataclasses, as its own backends do."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


@cache
def signal_sender() -> type:
    """The class that sends Django's task signals. By its path: it stands above this layer."""
    sender: type = import_string(BACKEND_PATH)
    return sender


def send(signal: str, result: AnyTaskResult) -> None:
    """Send one of Django's task signals, named as in `django.tasks.signals`; never raises.

    What receivers raise is logged, by Django or, where it is no `Exception` (SystemExit, CancelledError), here:
    what they are told of has happened. Such a receiver is the last one to be called.
    """
    try:
        callouts.call(getattr(signals, signal).send_robust, signal_sender(), task_result=result)
    except BaseException as error:
        logger.error(
            "dj_queue: a receiver of %s raised %s for job %s (%s). It must raise nothing but an Exception.",
            signal,
            type(error).__name__,
            result.id,
            result.task.name,
            exc_info=error,
        )
