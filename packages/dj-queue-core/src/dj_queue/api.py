"""What application code calls beside Django's own task verbs."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Literal

from asgiref.sync import sync_to_async
from django.db import transaction

from dj_queue.annotations import AnyTask
from dj_queue.backend import DjQueueBackend
from dj_queue.config import BackendConfig, backend_config
from dj_queue.operations import jobs, queues, recurring
from dj_queue.operations.stored import (
    clear_queue,
    discard_failed_job,
    discard_failed_jobs,
    retry_failed_job,
    retry_failed_jobs,
)

__all__ = [
    "QueueInfo",
    "aenqueue_on_commit",
    "aretry_failed_job",
    "aschedule_recurring_task",
    "aunschedule_recurring_task",
    "concurrency",
    "discard_failed_job",
    "discard_failed_jobs",
    "enqueue_on_commit",
    "retry_failed_job",
    "retry_failed_jobs",
    "schedule_recurring_task",
    "unschedule_recurring_task",
]

schedule_recurring_task = recurring.schedule
unschedule_recurring_task = recurring.unschedule
aschedule_recurring_task = sync_to_async(recurring.schedule, thread_sensitive=True)
aunschedule_recurring_task = sync_to_async(recurring.unschedule, thread_sensitive=True)
aretry_failed_job = sync_to_async(retry_failed_job, thread_sensitive=True)


def enqueue_on_commit(task: AnyTask, *args: Any, using: str | None = None, **kwargs: Any) -> None:
    """Enqueue when the current transaction commits; at once if there is none; never if it rolls back.

    `using` is the database alias whose commit is awaited, `default` if not given. The arguments are
    checked and copied now: `EnqueueError` is raised here, and not after the commit.
    """
    backend = task.get_backend()
    backend.validate_task(task)
    if isinstance(backend, DjQueueBackend):
        config = backend_config(backend.alias)
        prepared = jobs.prepare(config, task, args, kwargs)
        transaction.on_commit(partial(jobs.store, config, [prepared]), using=using)
    else:
        transaction.on_commit(partial(task.enqueue, *args, **kwargs), using=using)


async def aenqueue_on_commit(task: AnyTask, *args: Any, using: str | None = None, **kwargs: Any) -> None:
    """`enqueue_on_commit` for asynchronous code."""
    await sync_to_async(enqueue_on_commit, thread_sensitive=True)(task, *args, using=using, **kwargs)


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


class QueueInfo:
    """One queue of a backend: what waits in it, and the controls to pause, resume and clear it."""

    def __init__(self, queue_name: str, *, backend_alias: str = "default") -> None:
        self.queue_name = queue_name
        self.backend_alias = backend_alias

    @classmethod
    def all(cls, *, backend_alias: str = "default") -> "list[QueueInfo]":
        """The queues that hold ready jobs, by name."""
        names = queues.names(backend_config(backend_alias))
        return [cls(name, backend_alias=backend_alias) for name in names]

    @property
    def size(self) -> int:
        """How many jobs are ready."""
        return queues.size(self._config, self.queue_name)

    @property
    def latency(self) -> float:
        """For how many seconds the longest waiting ready job has been ready; 0.0 if none is."""
        return queues.latency(self._config, self.queue_name)

    @property
    def paused(self) -> bool:
        return queues.is_paused(self._config, self.queue_name)

    def pause(self) -> None:
        """Stop claims from the queue. Enqueueing goes on, and so does what runs."""
        queues.pause(self._config, self.queue_name)

    def resume(self) -> None:
        """Let workers claim from the queue again."""
        queues.resume(self._config, self.queue_name)

    def clear(self, *, batch_size: int = 500) -> int:
        """Discard the ready jobs; return how many."""
        return clear_queue(self._config, self.queue_name, batch_size=batch_size)

    def __repr__(self) -> str:
        return f"QueueInfo({self.queue_name!r}, backend_alias={self.backend_alias!r})"

    @property
    def _config(self) -> BackendConfig:
        return backend_config(self.backend_alias)
