"""The task backend: the verbs of django.tasks, spoken to the queue.

Django builds backends while task modules are imported, perhaps before its apps are ready: nothing
here touches models or the database before a method is called.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import sync_to_async
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTask

from dj_queue.serialization import storable
from dj_queue.types import AnyTask, AnyTaskResult

if TYPE_CHECKING:
    from django.tasks import Task, TaskResult

    from dj_queue.config import BackendConfig

_MAX_QUEUE_NAME = 64


class DjQueueBackend(BaseTaskBackend):
    """Stores tasks as jobs in the database, where `manage.py dj_queue` executes them."""

    supports_async_task = True
    supports_defer = True
    supports_get_result = True
    supports_priority = True

    def validate_task(self, task: AnyTask) -> None:
        """Raise `InvalidTask` for a task that this backend cannot store."""
        super().validate_task(task)
        name = task.queue_name
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_QUEUE_NAME or storable(name) != name:
            raise InvalidTask(f"queue_name must be text of 1 to {_MAX_QUEUE_NAME} characters, got {name!r}.")

    def enqueue[**P, R](self, task: "Task[P, R]", args: Sequence[Any], kwargs: Mapping[str, Any]) -> "TaskResult[P, R]":
        """Store one job, at once and within the caller's transaction if there is one.

        Raises `EnqueueError` if the arguments cannot be stored, `InvalidTask` if the task cannot.
        """
        return cast("TaskResult[P, R]", self.enqueue_all([(task, args, kwargs)])[0])

    def enqueue_all(
        self, task_calls: Iterable[tuple[AnyTask, Sequence[Any], Mapping[str, Any]]]
    ) -> list[AnyTaskResult]:
        """Store a job for every `(task, args, kwargs)`, all or none, in one round trip on PostgreSQL.

        Returns the results in the order of the calls.
        """
        from dj_queue.operations import jobs

        calls = list(task_calls)
        for task, _, _ in calls:
            self.validate_task(task)
        return jobs.enqueue(self._config, calls)

    async def aenqueue_all(
        self, task_calls: Iterable[tuple[AnyTask, Sequence[Any], Mapping[str, Any]]]
    ) -> list[AnyTaskResult]:
        return await sync_to_async(self.enqueue_all, thread_sensitive=True)(task_calls)

    def get_result(self, result_id: str) -> AnyTaskResult:
        """Read a result. Raises `TaskResultDoesNotExist` for every id this alias does not have."""
        from dj_queue.operations import results

        return results.get(self._config, result_id)

    @property
    def _config(self) -> "BackendConfig":
        from dj_queue.config import backend_config

        return backend_config(self.alias)
