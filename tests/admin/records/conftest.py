"""Jobs in every state, operators with every right, and two backends on one database."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, Job
from dj_queue.operations import jobs
from tests.project import tasks
from tests.working import work

type Operator = Callable[..., Client]


@pytest.fixture
def two_backends(settings: Any) -> None:
    ours = {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": {}}
    settings.TASKS = {"default": ours, "other": ours}


@pytest.fixture
def operator(db: None) -> Operator:
    """Log in a member of the staff with these permissions of the app and no others."""

    def log_in(*codenames: str, staff: bool = True) -> Client:
        user = User.objects.create_user(f"user-{User.objects.count()}", is_staff=staff)
        found = Permission.objects.filter(content_type__app_label="dj_queue", codename__in=codenames)
        assert found.count() == len(codenames), codenames
        user.user_permissions.set(found)
        client = Client()
        client.force_login(user)
        return client

    return log_in


def fail(message: str = "it failed", *, alias: str = "default", queue: str = "default", **kwargs: Any) -> Job:
    """A job that has run and failed."""
    task = kwargs.pop("task", tasks.fail)
    result = task.using(backend=alias, queue_name=queue).enqueue(message, **kwargs)
    assert work(alias=alias, queues=[queue])
    return Job.objects.get(pk=result.id)


def finish(*args: Any, alias: str = "default", task: Any = tasks.echo, **kwargs: Any) -> Job:
    """A job that has run and succeeded."""
    result = task.using(backend=alias, queue_name="finishing").enqueue(*args, **kwargs)
    assert work(alias=alias, queues=["finishing"])
    return Job.objects.get(pk=result.id)


def fail_many(
    count: int, *, alias: str = "default", task: Any = tasks.fail, exception: str = "builtins.ValueError"
) -> None:
    """So many failed jobs, without running them."""
    config = backend_config(alias)
    stored = jobs.enqueue(config, [(task.using(backend=alias), (f"number {n}",), {}) for n in range(count)])
    ids = [result.id for result in stored]
    from dj_queue.models import ReadyExecution

    ReadyExecution.objects.filter(job_id__in=ids).delete()
    FailedExecution.objects.bulk_create(
        FailedExecution(job_id=job_id, backend_alias=alias, exception_class=exception, message=f"of {job_id}")
        for job_id in ids
    )
