"""Everything about one job: its call, its times and attempts, its outcome, its limit, its process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

from dj_queue.config import BackendConfig
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    Job,
    ReadyExecution,
    RecurringTask,
    Semaphore,
)
from dj_queue.operations import recurring
from dj_queue_admin import hooks, permissions
from dj_queue_admin.records import shown, waiting
from dj_queue_admin.records.cells import since
from dj_queue_admin.redaction import redaction
from dj_queue_admin.secrets import HIDDEN, Secrets

if TYPE_CHECKING:
    from dj_queue_admin.records.record import RecordAdmin

# JSON that is read as text, so that nothing in it can break a page.
JSON_FIELDS = ("payload", "return_value", "errors", "worker_ids")
STATE_ROWS = ("ready_execution", "scheduled_execution", "claimed_execution", "blocked_execution", "failed_execution")

_LISTED = 20  # holders and waiters
ARGUMENTS = 200  # that are shown of one call
_ATTEMPTS = 20  # whose errors are shown
_RUNNING = 20_000  # claims that are looked through for holders


@dataclass(frozen=True)
class Moment:
    label: str
    at: datetime | None = None
    detail: str = ""
    url: str = ""


@dataclass(frozen=True)
class Failure:
    attempt: int
    exception_class: str
    traceback: str
    message: str = ""
    worker: str = ""


def describe(admin: RecordAdmin, request: HttpRequest, config: BackendConfig, job_id: UUID) -> dict[str, Any] | None:
    """What the page of a job shows; None if it is gone. A fixed number of statements."""
    rows = Job.objects.using(config.database_alias).filter(pk=job_id, backend_alias=config.alias)
    rows = rows.select_related(*STATE_ROWS, "claimed_execution__process", "recurring_execution").defer(*JSON_FIELDS)
    job: Any = shown.as_text(rows, None, **{f"{field}_text": field for field in JSON_FIELDS}).first()
    if job is None:
        return None
    now = recurring.now(config)
    contents = permissions.may_read(request, Job) or permissions.may_read(request, admin.model)
    call = shown.parse(job.payload_text)
    readable = not isinstance(call, shown.Unreadable)
    rules = redaction()
    secrets = rules.secrets(job.task_path, call) if readable else None
    arguments = rules.call(job.task_path, call, secrets=secrets, most=ARGUMENTS) if readable and contents else []
    failures, earlier = _failures(job, secrets)
    return {
        "job": job,
        "task_path": shown.visible(job.task_path, longest=500, lines=False),
        "contents": contents,
        "arguments": [(each, shown.pretty(each.value)) for each in arguments],
        "more_arguments": rules.count(call) - len(arguments) if arguments else 0,
        "unreadable": "" if readable else f"Not shown: {call.why}.",
        "result": shown.pretty(rules.of(shown.parse(job.return_value_text), secrets)) if contents else "",
        "has_result": job.finished_at is not None,
        "earlier": earlier,
        "failures": failures if contents else [Failure(each.attempt, each.exception_class, "") for each in failures],
        "timeline": _timeline(admin, job, failures, now),
        "limit": (limit := _limit(admin, request, config, job, secrets if contents else None)),
        "waits": waiting.why(config, job, now, limit["holders"] if limit else ()),
        "recurring": _recurring(admin, config, job),
        "queue_url": _queue_url(admin, job),
        "similar_url": admin.url_of_list(Job, backend=config.alias, task=job.task_path),
    }


# ---- attempts ---------------------------------------------------------------------------------------


def _failures(job: Any, secrets: Secrets | None) -> tuple[list[Failure], int]:
    """The errors of the last attempts, the newest first, and how many earlier ones are left out."""
    workers = _strings(shown.parse(job.worker_ids_text))
    errors = _list(shown.parse(job.errors_text))
    earlier = max(0, len(errors) - _ATTEMPTS)
    found = []
    for n, error in enumerate(errors[earlier:], earlier + 1):
        path, text, *_ = [*_strings(error), "", ""]
        found.append(_failure(n, path, text, "", workers, secrets))
    failed = getattr(job, "failed_execution", None)
    if failed is not None:
        at = len(errors) + 1
        found.append(_failure(at, failed.exception_class, failed.traceback, failed.message, workers, secrets))
    return found[::-1], earlier


def _failure(
    attempt: int, path: str, text: str, message: str, workers: Sequence[str], secrets: Secrets | None
) -> Failure:
    worker = workers[attempt - 1] if attempt <= len(workers) else ""
    return Failure(
        attempt,
        shown.visible(path, longest=255, lines=False),
        shown.visible(_hidden(text, path, secrets)),
        shown.visible(_hidden(message, path, secrets), longest=2_000),
        shown.visible(worker, longest=255, lines=False),
    )


def _hidden(text: str, exception_class: str, secrets: Secrets | None) -> str:
    if secrets is not None:
        return secrets.hide(text)
    # The queue's own errors are about arguments that could not be read: the task never had them.
    ours = exception_class.startswith("dj_queue.")
    return text if ours or not text else "Not shown: the arguments cannot be looked through for hidden values."


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _strings(value: Any) -> list[str]:
    return [str(item) for item in _list(value)]


def _timeline(admin: RecordAdmin, job: Any, failures: Sequence[Failure], now: datetime) -> list[Moment]:
    """What happened, and what is still to come, in order."""
    moments = [Moment("Enqueued", job.created_at)]
    if job.scheduled_at is not None:
        due = since(now, job.scheduled_at) if job.scheduled_at > now else ""
        moments.append(Moment("Scheduled for", job.scheduled_at, f"in {due}" if due else ""))
    if job.started_at is not None:
        moments.append(Moment("First started", job.started_at))
    for failure in failures[::-1][: -1 if job.failed else None]:
        by = f" on {failure.worker}" if failure.worker else ""
        moments.append(Moment(f"Attempt {failure.attempt} failed", None, f"{failure.exception_class}{by}"))
    if job.last_attempted_at is not None and job.last_attempted_at != job.started_at:
        moments.append(Moment("Last started", job.last_attempted_at))
    match job.status:
        case "ready":
            at = job.ready_execution.created_at
            moments.append(Moment("Ready", at, f"waiting for {since(at, now)}"))
        case "blocked":
            at = job.blocked_execution.created_at
            moments.append(Moment("Blocked", at, f"for {since(at, now)}, until the key is free"))
            moments.append(Moment("Tries again at the latest", job.blocked_execution.expires_at))
        case "claimed":
            at, process = job.claimed_execution.created_at, job.claimed_execution.process
            name = process.name if process else "a process that is gone"
            url = admin.url_of(process) if process else ""
            moments.append(Moment("Running", at, f"for {since(at, now)} on {name}", url))
        case "failed":
            worker = failures[0].worker
            by = f" on {worker}" if worker else ""
            moments.append(Moment("Failed", job.failed_execution.created_at, f"{failures[0].exception_class}{by}"))
        case "finished":
            workers = _strings(shown.parse(job.worker_ids_text))
            detail = f"on {workers[-1]}" if workers else "without running: its concurrency key was taken"
            moments.append(Moment("Finished", job.finished_at, detail))
    return moments


# ---- what it belongs to -----------------------------------------------------------------------------


def holders(config: BackendConfig, key: str) -> list[Job]:
    """Jobs of any backend that hold a slot of a key: they run, or are ready to."""
    using = config.database_alias
    claims = ClaimedExecution.objects.using(using)
    oldest = claims.order_by("-pk").values_list("pk", flat=True)[_RUNNING : _RUNNING + 1].first() or 0
    running = claims.filter(pk__gt=oldest, job__concurrency_key=key).order_by("pk")[:_LISTED]
    ready = ReadyExecution.objects.using(using).filter(concurrency_key=key).order_by("pk")[:_LISTED]
    return _jobs(config, [*running.values_list("job_id", flat=True), *ready.values_list("job_id", flat=True)])


def waiters(config: BackendConfig, key: str) -> list[Job]:
    """Jobs of any backend that wait for a key, the next first."""
    rows = BlockedExecution.objects.using(config.database_alias).filter(concurrency_key=key)
    return _jobs(config, list(rows.order_by("-priority", "id").values_list("job_id", flat=True)[:_LISTED]))


def _jobs(config: BackendConfig, ids: Sequence[UUID]) -> list[Job]:
    rows = Job.objects.using(config.database_alias).filter(pk__in=ids).select_related(*STATE_ROWS)
    found = {job.pk: job for job in rows.defer(*JSON_FIELDS)}
    return [found[job_id] for job_id in ids if job_id in found]


def _limit(
    admin: RecordAdmin, request: HttpRequest, config: BackendConfig, job: Job, secrets: Secrets | None
) -> dict[str, Any] | None:
    key = job.concurrency_key
    if not key:
        return None
    semaphore = Semaphore.objects.using(config.database_alias).filter(key=key).first()
    return {
        "key": shown.visible(HIDDEN if secrets is None else secrets.hide(key), longest=255, lines=False),
        "limit": job.concurrency_limit,
        "semaphore": semaphore,
        "semaphore_url": admin.url_of(semaphore, backend=config.alias) if semaphore else "",
        "holders": linked(admin, request, holders(config, key)),
        "waiters": linked(admin, request, waiters(config, key)),
        "most": _LISTED,
    }


def linked(admin: RecordAdmin, request: HttpRequest, jobs: Sequence[Job]) -> list[tuple[Job, str]]:
    """Those of a few jobs that the visitor may see, with their addresses."""
    seen = visible_ids(admin, request, jobs)
    return [(job, admin.url_of(job)) for job in jobs if job.pk in seen]


def visible_ids(admin: RecordAdmin, request: HttpRequest, jobs: Sequence[Job]) -> set[UUID]:
    site = admin.admin_site
    if not hooks.may_see(site, request, Job):
        return set()
    ids = {job.pk for job in jobs}
    if not ids or hooks.chosen(site, request, Job) is None:
        return ids
    # Of other backends, too: which of them the project shows, it says by backend.
    rows = Job.objects.using(jobs[0]._state.db).filter(pk__in=ids)
    return set(hooks.seen(site, request, Job, rows).values_list("pk", flat=True))


def _recurring(admin: RecordAdmin, config: BackendConfig, job: Any) -> dict[str, Any] | None:
    tick = getattr(job, "recurring_execution", None)
    if tick is None:
        return None
    rows = RecurringTask.objects.using(config.database_alias).defer("payload")
    task = rows.filter(backend_alias=job.backend_alias, key=tick.task_key).first()
    return {"key": tick.task_key, "run_at": tick.run_at, "url": admin.url_of(task) if task else ""}


def _queue_url(admin: RecordAdmin, job: Job) -> str:
    """The queue's page on the dashboard."""
    name = "admin:dj_queue_dashboard_queue"
    address = reverse(name, args=[job.queue_name], current_app=admin.admin_site.name)
    return f"{address}?{urlencode({'backend': job.backend_alias})}"
