"""From stored jobs to Django's tasks and results."""

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from functools import cache, lru_cache
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

from django.tasks import Task, TaskResult, TaskResultStatus, signals
from django.tasks.base import TaskError
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils.module_loading import import_string

from dj_queue import callouts
from dj_queue.config import BACKEND_PATH, BackendConfig
from dj_queue.dialects import Claim, dialect_for
from dj_queue.exceptions import TaskPathError
from dj_queue.operations import attempts
from dj_queue.serialization import describe
from dj_queue.types import AnyTask, AnyTaskResult

logger = logging.getLogger("dj_queue")


def get(config: BackendConfig, result_id: str) -> AnyTaskResult:
    """Read a result. Raises `TaskResultDoesNotExist` for every id this alias does not have."""

    try:
        job_id = UUID(str(result_id))
    except ValueError as error:
        raise TaskResultDoesNotExist(result_id) from error
    stored = _stored(config, job_id)
    if stored is None:
        raise TaskResultDoesNotExist(result_id)
    job, claim, failure = stored
    result, _ = _of_payload(
        stored_task(job.task_path, job.queue_name, job.priority, job.scheduled_at, job.backend_alias),
        job_id,
        shaped(job.payload),
        enqueued_at=job.created_at,
        started_at=job.started_at,
        last_attempted_at=job.last_attempted_at,
        worker_ids=attempts.workers(job.worker_ids),
        errors=task_errors(attempts.pairs(job.errors)),
    )
    if job.finished_at is not None:
        succeed(result, job.finished_at, job.return_value)
    elif failure is not None:
        failed_at, path, text = failure
        fail(result, failed_at, TaskError(exception_class_path=path, traceback=text))
    elif claim is not None:
        start(result, *claim)
    return result


class Payload(NamedTuple):
    args: list[Any]
    kwargs: dict[str, Any]
    flaw: str | None = None


def payload_of(text: str) -> Payload:
    """The arguments of a stored job; empty, and what is wrong with them, if they cannot be read."""
    try:
        return shaped(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        return Payload([], {}, f"its payload is no JSON ({type(error).__name__}: {error})")


def shaped(payload: Any) -> Payload:
    if not isinstance(payload, dict):
        return Payload([], {}, f"its payload is {_kind(payload)}, and not an object of args and kwargs")
    if "args" not in payload and "kwargs" not in payload:
        return Payload([], {}, "its payload has neither args nor kwargs")
    args, kwargs = payload.get("args", []), payload.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        return Payload([], {}, f"args is {_kind(args)} and kwargs is {_kind(kwargs)} in its payload")
    return Payload(args, kwargs)


def task_errors(pairs: Sequence[attempts.Pair]) -> list[TaskError]:
    return [TaskError(exception_class_path=path, traceback=text) for path, text in pairs]


def _kind(value: Any) -> str:
    return type(value).__name__


def _stored(config: BackendConfig, job_id: UUID) -> tuple[Any, Any, Any] | None:
    """A job, and (since, worker) of its claim, and (time, class, traceback) of its failure."""
    from dj_queue.models import Job

    related = ("claimed_execution__process", "failed_execution")
    rows = Job.objects.using(config.database_alias).filter(pk=job_id, backend_alias=config.alias)
    try:
        job = rows.select_related(*related).first()
    except Exception as error:  # a value of the row: whatever the driver, or JSON, makes of it
        if dialect_for(config.database_alias).is_unanswered(error):
            raise
        return _field_by_field(rows)
    if job is None:
        return None
    claim = getattr(job, "claimed_execution", None)
    failure = getattr(job, "failed_execution", None)
    return (
        job,
        claim and (claim.created_at, claim.process.name if claim.process else ""),
        failure and (failure.created_at, failure.exception_class, failure.traceback),
    )


def _field_by_field(rows: Any) -> tuple[Any, Any, Any] | None:
    """What of a row can be read; None for the rest."""
    if not rows.exists():
        return None

    def read(name: str) -> Any:
        try:
            return rows.values_list(name, flat=True).first()
        except Exception as error:
            if dialect_for(rows.db).is_unanswered(error):
                raise
            return None  # that is the one

    job = SimpleNamespace(**{field.attname: read(field.attname) for field in rows.model._meta.concrete_fields})
    job.task_path, job.queue_name = job.task_path or "", job.queue_name or ""
    job.priority, job.backend_alias = job.priority or 0, job.backend_alias or ""
    claim, failure = None, None
    if read("claimed_execution__pk") is not None:
        claim = (read("claimed_execution__created_at"), read("claimed_execution__process__name") or "")
    if read("failed_execution__pk") is not None:
        texts = (read(f"failed_execution__{name}") or "" for name in ("exception_class", "traceback"))
        failure = (read("failed_execution__created_at"), *texts)
    return job, claim, failure


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


def _of_payload(task: AnyTask, job_id: UUID, payload: Payload, **fields: Any) -> tuple[AnyTaskResult, str | None]:
    """Return the result, and what of its payload cannot be read."""
    try:
        return new(task, job_id, payload.args, payload.kwargs, **fields), payload.flaw
    except RecursionError:  # Django's result goes through the arguments once more
        return new(task, job_id, [], {}, **fields), "its payload is nested too deep"


def claimed(claim: Claim, alias: str, past: attempts.Past | None) -> tuple[AnyTaskResult, str | None]:
    """Return the result of a claim, not yet started, and what of its row cannot be read.

    Its task raises `TaskPathError` if there is none.
    """
    task = stored_task(claim.task_path, claim.queue_name, claim.priority, claim.scheduled_at, alias)
    result, flaw = _of_payload(
        task,
        claim.job_id,
        payload_of(claim.payload),
        enqueued_at=claim.created_at,
        started_at=claim.started_at,
        worker_ids=list(past.worker_ids) if past else [],
        errors=task_errors(past.errors) if past else [],
    )
    return result, claim.flaw or flaw


def start(result: AnyTaskResult, at: datetime | None, worker: str) -> None:
    _set(
        result,
        status=TaskResultStatus.RUNNING,
        started_at=result.started_at or at,
        last_attempted_at=at,
    )
    result.worker_ids.append(worker)


def succeed(result: AnyTaskResult, at: datetime, value: Any) -> None:
    _set(result, status=TaskResultStatus.SUCCESSFUL, finished_at=at, _return_value=value)


def fail(result: AnyTaskResult, at: datetime | None, error: TaskError) -> None:
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
