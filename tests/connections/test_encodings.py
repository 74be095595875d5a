"""A database that takes any bytes for text, and cannot give them to a client that asks for UTF-8."""

import pytest
from django.db import connections

from dj_queue.models import FailedExecution, Job
from dj_queue.operations import jobs
from tests.connections.conftest import task_alias
from tests.project import tasks

UNREADABLE = {
    "its task path": [("dj_queue_jobs", "task_path", "id")],
    "its queue": [("dj_queue_jobs", "queue_name", "id"), ("dj_queue_ready_executions", "queue_name", "job_id")],
    "its payload": [("dj_queue_jobs", "payload", "id")],
    "its key": [
        ("dj_queue_jobs", "concurrency_key", "id"),
        ("dj_queue_ready_executions", "concurrency_key", "job_id"),
    ],
}


@pytest.mark.needs("any bytes for text")
@pytest.mark.parametrize("second", [{"CHARSET": "SQL_ASCII", "TEMPLATE": "template0"}], indirect=True, ids=["ascii"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_one_job_that_cannot_be_sent_holds_up_no_other(second, settings, what):
    settings.TASKS = {"default": task_alias(database_alias=second)}
    settings.DATABASE_ROUTERS = ["dj_queue.routers.DjQueueRouter"]
    poison = tasks.limited_to_one.enqueue("k", 1)
    for n in range(12):
        tasks.add.enqueue(n, 1)
    with connections[second].cursor() as cursor:
        for table, column, key in UNREADABLE[what]:
            value = f"{column} || E'\\xff'"
            if column == "payload":
                value = "('{\"args\": [\"' || E'\\xff' || '\"], \"kwargs\": {}}')::jsonb"
            cursor.execute(f"UPDATE {table} SET {column} = {value} WHERE {key} = %s", [poison.id])
    while claimed := jobs.claim_ready_jobs(limit=100):
        for job in claimed:
            jobs.execute_claimed_job(job.pk)
    assert Job.objects.using(second).filter(finished_at__isnull=False).count() == 12
    failure = FailedExecution.objects.using(second).only("job_id", "message").get()
    assert str(failure.job_id) == poison.id
    assert "invalid byte sequence" in failure.message
