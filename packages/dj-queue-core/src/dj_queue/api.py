"""What application code calls beside Django's own task verbs."""

from functools import partial
from typing import Any

from asgiref.sync import sync_to_async
from django.db import transaction

from dj_queue.annotations import AnyTask
from dj_queue.backend import DjQueueBackend
from dj_queue.config import backend_config
from dj_queue.operations import jobs

__all__ = ["aenqueue_on_commit", "enqueue_on_commit"]


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
