"""A shop's queues as they might look on a weekday, for pictures and for tests that need something to look at."""

import math
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import UUID

from django.tasks import task
from django.utils import timezone

from dj_queue.identifiers import earliest_at
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Pause,
    Process,
    ReadyExecution,
    RecurringExecution,
    RecurringTask,
    ScheduledExecution,
    Semaphore,
)

# queue, task, jobs a minute, seconds that a job takes, share that fails, arguments
WORK = [
    ("default", "shop.tasks.sync_account", 14, 1.2, 0.004, {"account_id": 4711, "reason": "nightly"}),
    ("email", "shop.email.send_receipt", 22, 0.4, 0.002, {"order": 20817, "template": "receipt"}),
    ("webhooks", "shop.webhooks.deliver", 11, 0.9, 0.05, {"url": "https://hooks.example.org/orders", "order": 20817}),
    ("reports", "shop.reports.render_pdf", 1.5, 9.0, 0.02, {"report": "turnover", "month": "2026-10"}),
    ("search-index", "shop.search.index_product", 7, 0.2, 0.0, {"sku": "TS-042-M"}),
    ("media", "shop.media.resize", 4, 3.1, 0.01, {"image": "products/ts-042.jpg", "widths": [320, 640, 1280]}),
]
ERRORS = {
    "shop.webhooks.deliver": ("requests.exceptions.ConnectTimeout", "hooks.example.org did not answer within 10 s"),
    "shop.reports.render_pdf": ("MemoryError", "page 1204"),
}
OTHER_ERROR = ("shop.errors.UpstreamError", "503 Service Unavailable")


@task
def some_task() -> None: ...


def open_shop() -> None:
    """Let the recurring tasks be importable, as those of a shop that is well are."""
    for path in ("maintenance.cleanup", "reports.turnover", "rates.refresh", "sales.close"):
        name, _, function = f"shop.{path}".rpartition(".")
        for parent in ("shop", name):
            sys.modules.setdefault(parent, ModuleType(parent))
        vars(sys.modules[name]).setdefault(function, some_task)


def fill(*, minutes: int = 120, seed: int = 7, alias: str = "default") -> None:
    """Store jobs of every state, up to now, with the processes that work on them."""
    open_shop()
    chance = random.Random(seed)
    now = timezone.now()
    workers = _processes(now, alias)
    jobs = [job for work in WORK for job in _stream(work, now, minutes, chance, alias)]
    stories = [_story(job, seconds, fails, now, chance) for job, seconds, fails in jobs]
    Job.objects.bulk_create([job for job, _, _ in jobs], batch_size=500)
    waiting = [job for (job, _, _), story in zip(jobs, stories, strict=True) if story == "waiting"]
    running = [job for job in waiting if job.queue_name != "search-index"][:9]
    taken = {job.pk for job in running}
    ReadyExecution.objects.bulk_create(
        ReadyExecution(
            job=job,
            backend_alias=alias,
            queue_name=job.queue_name,
            priority=job.priority,
            created_at=job.created_at,
        )
        for job in waiting
        if job.pk not in taken
    )
    ClaimedExecution.objects.bulk_create(
        ClaimedExecution(job=job, process=workers[n % len(workers)], created_at=now - timedelta(seconds=n))
        for n, job in enumerate(running)
    )
    FailedExecution.objects.bulk_create(
        _failure(job, chance) for (job, _, _), story in zip(jobs, stories, strict=True) if story == "failed"
    )
    _scheduled(now, alias)
    _limited(now, alias)
    _recurring(now, alias)
    Pause.objects.create(backend_alias=alias, queue_name="search-index", created_at=now - timedelta(minutes=22))


def job_id(at: datetime, chance: random.Random) -> UUID:
    """An id as a job that was enqueued then would have it."""
    return UUID(int=earliest_at(at).int | chance.getrandbits(60))


def _stream(
    work: Any, now: datetime, minutes: int, chance: random.Random, alias: str
) -> Iterator[tuple[Job, float, float]]:
    queue, path, rate, seconds, fails, kwargs = work
    at = now - timedelta(minutes=minutes)
    while True:
        ago = (now - at).total_seconds() / 60
        swing = (
            1
            + 0.45 * math.sin(ago / 9 + len(queue))
            + (1.6 if 24 < ago < 31 and queue in {"default", "webhooks"} else 0)
        )
        at += timedelta(seconds=chance.expovariate(rate * swing / 60))
        if at >= now:
            return
        yield (
            Job(
                id=job_id(at, chance),
                task_path=path,
                queue_name=queue,
                priority=5 if queue == "email" else 0,
                payload={"args": [], "kwargs": kwargs},
                backend_alias=alias,
                created_at=at,
                updated_at=at,
            ),
            seconds,
            fails,
        )


def _story(job: Job, seconds: float, fails: float, now: datetime, chance: random.Random) -> str:
    """What became of a job; its row is set accordingly."""
    ago = (now - job.created_at).total_seconds() / 60
    slow = 40 * math.exp(-((ago - 26) ** 2) / 18) if job.queue_name in {"default", "webhooks"} else 0
    started = job.created_at + timedelta(seconds=chance.expovariate(1 / (0.3 + slow)))
    finished = started + timedelta(seconds=chance.gammavariate(3, seconds / 3))
    if started > now or finished > now or (job.queue_name == "search-index" and ago < 22):
        return "waiting"
    job.started_at = job.last_attempted_at = started
    job.worker_ids = [f"worker-{chance.randint(1, 3)}"]
    job.updated_at = finished
    if chance.random() < fails:
        return "failed"
    job.finished_at = finished
    job.return_value = {"ok": True}
    return "finished"


def _failure(job: Job, chance: random.Random) -> FailedExecution:
    error, message = ERRORS.get(job.task_path, OTHER_ERROR)
    module, _, function = job.task_path.rpartition(".")
    return FailedExecution(
        job=job,
        backend_alias=job.backend_alias,
        queue_name=job.queue_name,
        exception_class=error,
        message=message,
        traceback=(
            "Traceback (most recent call last):\n"
            f'  File "{module.replace(".", "/")}.py", line {chance.randint(20, 90)}, in {function}\n'
            "    response = session.post(url, json=body, timeout=10)\n"
            f"{error}: {message}\n"
        ),
        created_at=job.updated_at,
    )


def _processes(now: datetime, alias: str) -> list[Process]:
    workers = []
    for host, pid in (("jobs-1", 2211), ("jobs-2", 1874)):
        supervisor = Process.objects.create(
            backend_alias=alias,
            kind="Supervisor",
            pid=pid,
            hostname=host,
            name=f"supervisor-{pid}",
            metadata={
                "mode": "fork",
                "standalone": True,
                "worker_count": 2,
                "dispatcher_count": int(host == "jobs-1"),
                "has_scheduler": host == "jobs-1",
            },
            last_heartbeat_at=now - timedelta(seconds=11),
        )
        for n, queues in enumerate((["*"], ["email", "webhooks"]), start=1):
            workers.append(
                Process.objects.create(
                    backend_alias=alias,
                    kind="Worker",
                    pid=pid + n,
                    hostname=host,
                    name=f"worker-{n}",
                    supervisor=supervisor,
                    metadata={"queues": queues, "threads": 8, "polling_interval": 0.1},
                    last_heartbeat_at=now - timedelta(seconds=7 * n),
                )
            )
        if host == "jobs-1":
            Process.objects.create(
                backend_alias=alias,
                kind="Dispatcher",
                pid=pid + 3,
                hostname=host,
                name="dispatcher-1",
                supervisor=supervisor,
                metadata={"batch_size": 500, "polling_interval": 1},
                last_heartbeat_at=now - timedelta(seconds=4),
            )
            Process.objects.create(
                backend_alias=alias,
                kind="Scheduler",
                pid=pid + 4,
                hostname=host,
                name="scheduler-1",
                supervisor=supervisor,
                metadata={"dynamic_tasks_enabled": True, "static_task_count": 3, "cleanup_enabled": True},
                last_heartbeat_at=now - timedelta(seconds=30),
            )
    return workers


def _scheduled(now: datetime, alias: str) -> None:
    chance = random.Random(3)
    jobs = [
        Job(
            id=job_id(now - timedelta(minutes=50, seconds=n), chance),
            task_path="shop.email.remind_of_cart",
            queue_name="email",
            payload={"args": [8000 + n], "kwargs": {}},
            backend_alias=alias,
            scheduled_at=now + timedelta(minutes=3 * n + 2),
            created_at=now - timedelta(minutes=50, seconds=n),
        )
        for n in range(64)
    ]
    Job.objects.bulk_create(jobs)
    ScheduledExecution.objects.bulk_create(
        ScheduledExecution(job=job, backend_alias=alias, queue_name="email", scheduled_at=job.scheduled_at or now)
        for job in jobs
    )


def _limited(now: datetime, alias: str) -> None:
    chance = random.Random(5)
    for n, (key, limit, waiting) in enumerate((("account:4711", 1, 4), ("account:88", 2, 1), ("export", 3, 0))):
        Semaphore.objects.create(
            key=key, value=0 if waiting else 1, limit=limit, expires_at=now + timedelta(minutes=3 + n)
        )
        jobs = [
            Job(
                id=job_id(now - timedelta(minutes=2, seconds=each), chance),
                task_path="shop.tasks.sync_account",
                queue_name="default",
                payload={"args": [], "kwargs": {"account_id": 4711}},
                backend_alias=alias,
                concurrency_key=key,
                concurrency_limit=limit,
                created_at=now - timedelta(minutes=2, seconds=each),
            )
            for each in range(waiting)
        ]
        Job.objects.bulk_create(jobs)
        BlockedExecution.objects.bulk_create(
            BlockedExecution(
                job=job,
                backend_alias=alias,
                queue_name="default",
                concurrency_key=key,
                expires_at=now + timedelta(minutes=3),
            )
            for job in jobs
        )


def _recurring(now: datetime, alias: str) -> None:
    for key, path, schedule, queue, static, ago in (
        ("nightly_cleanup", "shop.maintenance.cleanup", "0 3 * * *", "maintenance", True, 17 * 60),
        ("hourly_turnover", "shop.reports.turnover", "0 * * * *", "reports", True, 24),
        ("refresh_rates", "shop.rates.refresh", "*/5 * * * *", "default", True, 3),
        ("flash_sale_9921", "shop.sales.close", "30 18 * * 5", "default", False, None),
    ):
        RecurringTask.objects.create(
            backend_alias=alias, key=key, task_path=path, schedule=schedule, queue_name=queue, static=static
        )
        if ago is not None:
            RecurringExecution.objects.create(
                backend_alias=alias, task_key=key, run_at=now - timedelta(minutes=ago), job=None
            )
