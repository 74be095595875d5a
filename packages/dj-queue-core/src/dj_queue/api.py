"""What application code calls beside Django's own task verbs.

Task modules import this, perhaps before Django's apps are ready: models are imported only inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import transaction

from dj_queue.backend import DjQueueBackend
from dj_queue.config import BackendConfig, backend_config
from dj_queue.serialization import is_storable
from dj_queue.types import AnyTask

if TYPE_CHECKING:
    from dj_queue.models import Job, RecurringTask

type Call = tuple[AnyTask, Sequence[Any], Mapping[str, Any]]

__all__ = [
    "QueueInfo",
    "adiscard_failed_job",
    "adiscard_failed_jobs",
    "aenqueue_all_on_commit",
    "aenqueue_job_again",
    "aenqueue_on_commit",
    "aretry_failed_job",
    "aretry_failed_jobs",
    "aschedule_recurring_task",
    "aunschedule_recurring_task",
    "concurrency",
    "discard_failed_job",
    "discard_failed_jobs",
    "enqueue_all_on_commit",
    "enqueue_job_again",
    "enqueue_on_commit",
    "retry_failed_job",
    "retry_failed_jobs",
    "schedule_recurring_task",
    "unschedule_recurring_task",
]


def enqueue_on_commit(task: AnyTask, /, *args: Any, using: str | None = None, **kwargs: Any) -> None:
    """Enqueue when the current transaction commits; at once if there is none; never if it rolls back.

    `using` is the database alias whose commit is awaited, `default` if not given. The arguments are
    checked and copied now: `EnqueueError` is raised here, and not after the commit.
    """
    enqueue_all_on_commit([(task, args, kwargs)], using=using)


def enqueue_all_on_commit(task_calls: Iterable[Call], *, using: str | None = None) -> None:
    """`enqueue_on_commit` for many calls, each `(task, args, kwargs)`: one round trip an alias, after the commit."""
    from dj_queue.operations import jobs

    prepared: dict[str, list[Any]] = {}
    for task, args, kwargs in task_calls:
        backend = task.get_backend()
        backend.validate_task(task)
        if isinstance(backend, DjQueueBackend):
            mine = jobs.prepare(backend_config(backend.alias), task, args, kwargs)
            prepared.setdefault(backend.alias, []).append(mine)
        else:
            transaction.on_commit(partial(task.enqueue, *args, **kwargs), using=using)
    for alias, some in prepared.items():
        transaction.on_commit(partial(jobs.store, backend_config(alias), some), using=using)


async def aenqueue_on_commit(task: AnyTask, /, *args: Any, using: str | None = None, **kwargs: Any) -> None:
    """`enqueue_on_commit` for asynchronous code."""
    await sync_to_async(partial(enqueue_on_commit, task, *args, using=using, **kwargs), thread_sensitive=True)()


async def aenqueue_all_on_commit(task_calls: Iterable[Call], *, using: str | None = None) -> None:
    """`enqueue_all_on_commit` for asynchronous code."""
    await sync_to_async(enqueue_all_on_commit, thread_sensitive=True)(task_calls, using=using)


def concurrency[T](
    *,
    key: str | Callable[..., str],
    limit: int = 1,
    duration: float | timedelta | None = None,
    on_conflict: Literal["block", "discard"] = "block",
) -> Callable[[T], T]:
    """Limit how many jobs of one key are ready or running at once; a decorator for either side of `@task`.

    `key` is a format string over the task's parameters, or a callable on its arguments. `duration` is in
    seconds. What is wrong with them is said when a job is enqueued, as an `EnqueueError`.
    """

    def decorate(decorated: T) -> T:
        function: Any = getattr(decorated, "func", decorated)
        function.concurrency_key = key
        function.concurrency_limit = limit
        function.concurrency_duration = duration
        function.on_conflict = on_conflict
        return decorated

    return decorate


def schedule_recurring_task(
    *,
    key: str,
    task_path: str,
    schedule: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    queue_name: str = "default",
    priority: int = 0,
    description: str = "",
    timezone: str | None = None,
    catch_up: Literal["latest", "none"] | None = None,
    backend_alias: str = "default",
) -> RecurringTask:
    """Create or change a recurring task at run time; it begins with its next tick.

    `schedule` is a cron expression, read in `timezone`, or in the project's. Of ticks that were missed while no
    scheduler ran, `catch_up` makes up for the "latest" or for "none"; by default as the option `scheduler.catch_up`
    says. Tasks made here run only with the option `scheduler.dynamic_tasks_enabled`. Raises `ValidationError` with
    everything that is wrong, and for a task that the settings define.
    """
    from dj_queue.operations import recurring

    return recurring.schedule(
        key=key,
        task_path=task_path,
        schedule=schedule,
        args=args,
        kwargs=kwargs,
        queue_name=queue_name,
        priority=priority,
        description=description,
        timezone=timezone,
        catch_up=catch_up,
        backend_alias=backend_alias,
    )


def unschedule_recurring_task(key: str, *, backend_alias: str = "default") -> int:
    """Delete a recurring task made at run time; return 1, or 0 if there is none or the settings define it."""
    from dj_queue.operations import recurring

    return recurring.unschedule(key, backend_alias=backend_alias)


def retry_failed_job(job_id: UUID | str, *, backend_alias: str = "default") -> Job:
    """Let a failed job run again. Raises `FailedExecution.DoesNotExist` if it is not failed."""
    from dj_queue.operations import stored

    return stored.retry_failed_job(job_id, backend_alias=backend_alias)


def retry_failed_jobs(
    *, job_ids: Iterable[UUID | str] | None = None, batch_size: int = 500, backend_alias: str = "default"
) -> int:
    """Let failed jobs run again, all of the alias or those given; return how many."""
    from dj_queue.operations import stored

    return stored.retry_failed_jobs(job_ids=job_ids, batch_size=batch_size, backend_alias=backend_alias)


def discard_failed_job(job_id: UUID | str, *, backend_alias: str = "default") -> int:
    """Delete a failed job; return 1, or 0 if it is not failed."""
    from dj_queue.operations import stored

    return stored.discard_failed_job(job_id, backend_alias=backend_alias)


def discard_failed_jobs(
    *, job_ids: Iterable[UUID | str] | None = None, batch_size: int = 500, backend_alias: str = "default"
) -> int:
    """Delete failed jobs, all of the alias or those given; return how many."""
    from dj_queue.operations import stored

    return stored.discard_failed_jobs(job_ids=job_ids, batch_size=batch_size, backend_alias=backend_alias)


def enqueue_job_again(job_id: UUID | str, *, backend_alias: str = "default") -> Job:
    """Enqueue a fresh copy of a stored job, whatever its state; return the copy. Raises `Job.DoesNotExist`."""
    from dj_queue.operations import stored

    return stored.enqueue_job_again(job_id, backend_alias=backend_alias)


aschedule_recurring_task = sync_to_async(schedule_recurring_task, thread_sensitive=True)
aunschedule_recurring_task = sync_to_async(unschedule_recurring_task, thread_sensitive=True)
aretry_failed_job = sync_to_async(retry_failed_job, thread_sensitive=True)
aretry_failed_jobs = sync_to_async(retry_failed_jobs, thread_sensitive=True)
adiscard_failed_job = sync_to_async(discard_failed_job, thread_sensitive=True)
adiscard_failed_jobs = sync_to_async(discard_failed_jobs, thread_sensitive=True)
aenqueue_job_again = sync_to_async(enqueue_job_again, thread_sensitive=True)


class QueueInfo:
    """One queue of a backend: what waits in it, and the controls to pause, resume and clear it.

    Raises `ValueError` for a name with NUL characters or lone surrogates: no queue has such a name.
    """

    def __init__(self, queue_name: str, *, backend_alias: str = "default") -> None:
        if not is_storable(queue_name):
            raise ValueError(
                f"expected a queue name of 1 to 64 characters, got {ascii(queue_name)[:80]}. No queue's name has NUL"
                " characters or lone surrogates."
            )
        self.queue_name = queue_name
        self.backend_alias = backend_alias

    @classmethod
    def all(cls, *, backend_alias: str = "default") -> list[QueueInfo]:
        """The queues that hold ready jobs, by name."""
        from dj_queue.operations import queues

        names = queues.names(backend_config(backend_alias))
        return [cls(name, backend_alias=backend_alias) for name in names]

    @property
    def size(self) -> int:
        """How many jobs are ready."""
        from dj_queue.operations import queues

        return queues.size(self._config, self.queue_name)

    @property
    def latency(self) -> float:
        """For how many seconds the longest waiting ready job has been ready; 0.0 if none is."""
        from dj_queue.operations import queues

        return queues.latency(self._config, self.queue_name)

    @property
    def paused(self) -> bool:
        from dj_queue.operations import queues

        return queues.is_paused(self._config, self.queue_name)

    def pause(self) -> None:
        """Stop claims from the queue. Enqueueing goes on, and so does what runs.

        Raises `ValueError` for a name that no queue can have.
        """
        from dj_queue.operations import queues

        queues.pause(self._config, self.queue_name)

    def resume(self) -> None:
        """Let workers claim from the queue again."""
        from dj_queue.operations import queues

        queues.resume(self._config, self.queue_name)

    def clear(self, *, batch_size: int = 500) -> int:
        """Discard the ready jobs; return how many."""
        from dj_queue.operations.stored import clear_queue

        return clear_queue(self._config, self.queue_name, batch_size=batch_size)

    # ---- for asynchronous code: the properties are methods here ----

    @classmethod
    async def aall(cls, *, backend_alias: str = "default") -> list[QueueInfo]:
        return await sync_to_async(cls.all, thread_sensitive=True)(backend_alias=backend_alias)

    async def asize(self) -> int:
        return await sync_to_async(lambda: self.size, thread_sensitive=True)()

    async def alatency(self) -> float:
        return await sync_to_async(lambda: self.latency, thread_sensitive=True)()

    async def apaused(self) -> bool:
        return await sync_to_async(lambda: self.paused, thread_sensitive=True)()

    async def apause(self) -> None:
        await sync_to_async(self.pause, thread_sensitive=True)()

    async def aresume(self) -> None:
        await sync_to_async(self.resume, thread_sensitive=True)()

    async def aclear(self, *, batch_size: int = 500) -> int:
        return await sync_to_async(self.clear, thread_sensitive=True)(batch_size=batch_size)

    def __repr__(self) -> str:
        return f"QueueInfo({self.queue_name!r}, backend_alias={self.backend_alias!r})"

    @property
    def _config(self) -> BackendConfig:
        return backend_config(self.backend_alias)
