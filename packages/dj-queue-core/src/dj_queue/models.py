"""Every table of the queue. One job is in one state at a time.

A job is *finished* if `finished_at` is set; otherwise the one execution row that points to it says
its state. Each execution table holds a job at most once; a job goes from one to another only by
deleting its old row in the statement or transaction that writes the new one (operations).

Indexes stand beside the statement they serve. What a job's finish changes is in no index, so that
PostgreSQL can write it as a heap-only update.

One module, however long: it is read as one schema, and Django and promised imports look for all of it here.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.checks import CheckMessage
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from dj_queue.dialects.job_id import JobIdField
from dj_queue.exceptions import UndiscardableError
from dj_queue.identifiers import uuid7

STATES = ("ready", "scheduled", "claimed", "blocked", "failed", "finished")

MAX_QUEUE_NAME = 64
MAX_BACKEND_ALIAS = 64


def empty_payload() -> dict[str, Any]:
    return {"args": [], "kwargs": {}}


class JobQuerySet(models.QuerySet["Job"]):
    def ready(self) -> JobQuerySet:
        return self.filter(ready_execution__isnull=False)

    def scheduled(self) -> JobQuerySet:
        return self.filter(scheduled_execution__isnull=False)

    def claimed(self) -> JobQuerySet:
        return self.filter(claimed_execution__isnull=False)

    def blocked(self) -> JobQuerySet:
        return self.filter(blocked_execution__isnull=False)

    def failed(self) -> JobQuerySet:
        return self.filter(failed_execution__isnull=False)

    def finished(self) -> JobQuerySet:
        return self.filter(finished_at__isnull=False)


class Job(models.Model):
    id = JobIdField(primary_key=True, default=uuid7, editable=False)
    task_path = models.TextField()
    queue_name = models.CharField(max_length=MAX_QUEUE_NAME, default="default")
    priority = models.SmallIntegerField(default=0, validators=[MinValueValidator(-100), MaxValueValidator(100)])
    payload = models.JSONField(default=empty_payload)
    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    scheduled_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    concurrency_key = models.CharField(max_length=255, null=True, blank=True)
    # The limit as it stood at enqueue: promotion and retry need not import the task to respect it.
    concurrency_limit = models.PositiveIntegerField(null=True, blank=True)
    concurrency_duration = models.FloatField(null=True, blank=True)
    on_conflict = models.CharField(max_length=7, null=True, blank=True)
    return_value = models.JSONField(null=True, blank=True)
    # The attempts so far: when the first and the last began, and one worker name for each.
    started_at = models.DateTimeField(null=True, blank=True)
    last_attempted_at = models.DateTimeField(null=True, blank=True)
    worker_ids = models.JSONField(null=True, blank=True)
    # Errors of earlier attempts, oldest first: [exception class, traceback]. The error of a job
    # that is failed now is in its FailedExecution, and moves here when it is retried.
    errors = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = models.Manager.from_queryset(JobQuerySet)()

    class Meta:
        db_table = "dj_queue_jobs"
        # Of dj-queue-admin: all of an operator's verbs that delete nothing, without a right to any model.
        permissions: ClassVar = [("operate_queue", "Can pause and resume queues, retry jobs and enqueue them again")]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(priority__gte=-100, priority__lte=100), name="dj_queue_jobs_priority_range"
            ),
        ]
        indexes: ClassVar = [
            # a queue's jobs, newest first, for operators; how many there are; which queues there are
            models.Index(fields=["backend_alias", "queue_name", "id"], name="dj_queue_jobs_queue"),
        ]

    def __str__(self) -> str:
        return f"{self.task_path} ({self.id})"

    @property
    def status(self) -> str | None:
        """The job's state, or None for a row that no state claims."""
        if self.finished_at is not None:
            return "finished"
        return next((state for state in STATES[:-1] if hasattr(self, f"{state}_execution")), None)

    @property
    def ready(self) -> bool:
        return self.status == "ready"

    @property
    def scheduled(self) -> bool:
        return self.status == "scheduled"

    @property
    def claimed(self) -> bool:
        return self.status == "claimed"

    @property
    def blocked(self) -> bool:
        return self.status == "blocked"

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    @property
    def finished(self) -> bool:
        return self.status == "finished"


class ReadyExecution(models.Model):
    # No database constraint here and on claims: it would cost each job three more statements and a fifth
    # of its WAL. A row whose job was deleted behind the queue's back is dropped when it is claimed.
    job = models.OneToOneField(Job, models.CASCADE, db_constraint=False, related_name="ready_execution")
    # Repeated from the job, so that a claim finds its rows in one index.
    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    queue_name = models.CharField(max_length=MAX_QUEUE_NAME, default="default")
    priority = models.SmallIntegerField(default=0)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    # Set where the job holds a slot of a semaphore.
    concurrency_key = models.CharField(max_length=255, null=True, blank=True)
    latency_started_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "dj_queue_ready_executions"
        indexes: ClassVar = [
            # claim, selector "*"
            models.Index(fields=["backend_alias", "-priority", "id"], name="dj_queue_ready_all"),
            # claim, named queues and prefixes; size, latency and clear of a queue
            models.Index(fields=["backend_alias", "queue_name", "-priority", "id"], name="dj_queue_ready_queue"),
            # maintenance counts who holds a key; jobs without one pay nothing
            models.Index(
                fields=["concurrency_key"],
                condition=Q(concurrency_key__isnull=False),
                name="dj_queue_ready_holders",
            ),
        ]

    def __str__(self) -> str:
        return f"ready {self.pk}"

    @classmethod
    def check(cls, **kwargs: Any) -> list[CheckMessage]:
        # "Ignored, and your project will not be at fault": where there are no partial indexes, Django makes
        # an ordinary one, which serves as well.
        return [message for message in super().check(**kwargs) if message.id != "models.W037"]

    @classmethod
    def discard_all_in_batches(cls, *, batch_size: int = 500, backend_alias: str = "default") -> int:
        """Delete every ready job of the alias; return how many."""
        from dj_queue.operations import stored

        return stored.discard_ready_jobs(batch_size=batch_size, backend_alias=backend_alias)


class ScheduledExecution(models.Model):
    job = models.OneToOneField(Job, models.CASCADE, related_name="scheduled_execution")
    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    queue_name = models.CharField(max_length=MAX_QUEUE_NAME, default="default")
    priority = models.SmallIntegerField(default=0)
    scheduled_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_scheduled_executions"
        indexes: ClassVar = [
            # promote
            models.Index(fields=["backend_alias", "scheduled_at", "-priority", "id"], name="dj_queue_scheduled_due"),
            # a queue's scheduled jobs, the next first, and how many there are
            models.Index(fields=["backend_alias", "queue_name", "scheduled_at"], name="dj_queue_scheduled_queue"),
        ]

    def __str__(self) -> str:
        return f"scheduled {self.pk}"

    @classmethod
    def discard_all_in_batches(cls, *, batch_size: int = 500, backend_alias: str = "default") -> int:
        """Delete every scheduled job of the alias; return how many."""
        from dj_queue.operations import stored

        return stored.discard_scheduled_jobs(batch_size=batch_size, backend_alias=backend_alias)


class ClaimedExecution(models.Model):
    """A claim. Its id is the fence: the one that deletes the row may decide what becomes of the job."""

    job = models.OneToOneField(Job, models.CASCADE, db_constraint=False, related_name="claimed_execution")
    # No index: the table holds only what runs, and each index is written twice for every job.
    process = models.ForeignKey(
        "Process",
        models.SET_NULL,
        null=True,
        blank=True,
        db_constraint=False,
        db_index=False,
        related_name="claimed_executions",
    )
    # The id of the ready row it was: a job that is given back takes its old place in the queue.
    position = models.BigIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_claimed_executions"

    def __str__(self) -> str:
        return f"claimed {self.pk}"

    @classmethod
    def discard_all_in_batches(cls, *, batch_size: int = 500, backend_alias: str = "default") -> int:
        """Raise `UndiscardableError`: these jobs are running."""
        raise UndiscardableError("claimed jobs are running and cannot be discarded. Stop their workers first.")


class BlockedExecution(models.Model):
    job = models.OneToOneField(Job, models.CASCADE, related_name="blocked_execution")
    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    queue_name = models.CharField(max_length=MAX_QUEUE_NAME, default="default")
    priority = models.SmallIntegerField(default=0)
    concurrency_key = models.CharField(max_length=255)
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_blocked_executions"
        indexes: ClassVar = [
            # unblock the next of a key
            models.Index(fields=["concurrency_key", "-priority", "id"], name="dj_queue_blocked_next"),
            # a queue's blocked jobs, oldest first, and how many there are
            models.Index(fields=["backend_alias", "queue_name", "id"], name="dj_queue_blocked_queue"),
        ]

    def __str__(self) -> str:
        return f"blocked {self.pk}"

    @classmethod
    def discard_all_in_batches(cls, *, batch_size: int = 500, backend_alias: str = "default") -> int:
        """Delete every blocked job of the alias; return how many."""
        from dj_queue.operations import stored

        return stored.discard_blocked_jobs(batch_size=batch_size, backend_alias=backend_alias)


class FailedExecution(models.Model):
    job = models.OneToOneField(Job, models.CASCADE, related_name="failed_execution")
    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    queue_name = models.CharField(max_length=MAX_QUEUE_NAME, default="default")
    exception_class = models.CharField(max_length=255)
    message = models.TextField(default="", blank=True)
    traceback = models.TextField(default="", blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_failed_executions"
        indexes: ClassVar = [
            # retention, by failure time
            models.Index(fields=["backend_alias", "created_at", "id"], name="dj_queue_failed_time"),
            # a queue's failures, newest first, and how many there are
            models.Index(fields=["backend_alias", "queue_name", "id"], name="dj_queue_failed_queue"),
        ]

    def __str__(self) -> str:
        return f"failed {self.pk}: {self.exception_class}"

    def retry(self) -> Job:
        """See `dj_queue.operations.jobs.retry_failed_job`."""
        from dj_queue.operations import stored

        return stored.retry_failed_job(self.job.id, backend_alias=self.job.backend_alias)

    def discard(self) -> int:
        """See `dj_queue.operations.jobs.discard_failed_job`."""
        from dj_queue.operations import stored

        return stored.discard_failed_job(self.job.id, backend_alias=self.job.backend_alias)

    @classmethod
    def retry_all(cls, queryset: models.QuerySet[FailedExecution]) -> int:
        """Retry the failed jobs of a queryset, in its order; return how many."""
        from dj_queue.operations import stored

        return stored.retry_all(queryset)

    @classmethod
    def discard_all_in_batches(cls, *, batch_size: int = 500, backend_alias: str = "default") -> int:
        """Delete every failed job of the alias; return how many."""
        from dj_queue.operations import stored

        return stored.discard_failed_jobs(batch_size=batch_size, backend_alias=backend_alias)


class Process(models.Model):
    class Kind(models.TextChoices):
        SUPERVISOR = "Supervisor"
        WORKER = "Worker"
        DISPATCHER = "Dispatcher"
        SCHEDULER = "Scheduler"

    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    kind = models.CharField(max_length=16, choices=Kind)
    pid = models.PositiveIntegerField()
    hostname = models.CharField(max_length=255, default="", blank=True)
    name = models.CharField(max_length=255)
    metadata = models.JSONField(default=dict, blank=True)
    supervisor = models.ForeignKey("self", models.SET_NULL, null=True, blank=True, related_name="children")
    last_heartbeat_at = models.DateTimeField(db_default=Now())
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_processes"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["name", "supervisor"], name="dj_queue_processes_name"),
        ]

    def __str__(self) -> str:
        return self.name


class Pause(models.Model):
    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    queue_name = models.CharField(max_length=MAX_QUEUE_NAME)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_pauses"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["backend_alias", "queue_name"], name="dj_queue_pauses_queue"),
        ]

    def __str__(self) -> str:
        return f"{self.queue_name} paused"


class Semaphore(models.Model):
    key = models.CharField(max_length=255)
    value = models.IntegerField()
    limit = models.IntegerField()
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_semaphores"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key"], name="dj_queue_semaphores_key"),
        ]
        # No other index: whatever changes as jobs come and go is written as a heap-only update.

    def __str__(self) -> str:
        return f"{self.key} ({self.value} of {self.limit} free)"


class RecurringTask(models.Model):
    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    key = models.CharField(max_length=255)
    task_path = models.CharField(max_length=255)
    payload = models.JSONField(null=True, blank=True)
    schedule = models.CharField(max_length=255)
    timezone = models.CharField(max_length=64, null=True, blank=True)
    # Of a dynamic task: "latest" or "none". A static one has it in the settings.
    catch_up = models.CharField(max_length=8, null=True, blank=True)
    queue_name = models.CharField(max_length=MAX_QUEUE_NAME, default="default")
    priority = models.SmallIntegerField(default=0)
    description = models.TextField(default="", blank=True)
    static = models.BooleanField(default=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_recurring_tasks"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["backend_alias", "key"], name="dj_queue_recurring_tasks_key"),
        ]

    def __str__(self) -> str:
        return self.key


class RecurringExecution(models.Model):
    """One tick of a recurring task. The unique row decides which scheduler enqueues it."""

    backend_alias = models.CharField(max_length=MAX_BACKEND_ALIAS, default="default")
    job = models.OneToOneField(Job, models.CASCADE, null=True, blank=True, related_name="recurring_execution")
    task_key = models.CharField(max_length=255)
    run_at = models.DateTimeField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "dj_queue_recurring_executions"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["backend_alias", "task_key", "run_at"], name="dj_queue_recurring_tick"),
        ]
        indexes: ClassVar = [
            # retention, by age
            models.Index(fields=["backend_alias", "run_at", "id"], name="dj_queue_recurring_age"),
        ]

    def __str__(self) -> str:
        return f"{self.task_key} at {self.run_at}"


class NoRows(models.Manager["Dashboard"]):
    """Asks no database: whatever walks all models, as dumpdata does, finds that there is nothing."""

    def get_queryset(self) -> models.QuerySet[Dashboard]:
        return super().get_queryset().none()


class Dashboard(models.Model):
    """No table: the page that dj-queue-admin shows under this app's label."""

    objects = NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ()
        verbose_name = verbose_name_plural = "dashboard"

    def __str__(self) -> str:
        return "dashboard"
