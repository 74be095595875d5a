"""Why a job that waits does so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.utils.html import format_html
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.dialects import Selector
from dj_queue.models import Job, Process
from dj_queue.operations import queues
from dj_queue.operations.schedule import aware
from dj_queue_admin import liveness
from dj_queue_admin.records.cells import link, since


def why(config: BackendConfig, job: Any, now: datetime, holders: Sequence[tuple[Job, str]]) -> SafeString | str:
    """In a sentence; empty for a job that does not wait. `holders` are the jobs with its key, and their addresses."""
    match job.status:
        case "ready":
            return _why_ready(config, job)
        case "scheduled":
            return _why_scheduled(config, job, now)
        case "blocked":
            return _why_blocked(config, job, holders)
    return ""


def _why_ready(config: BackendConfig, job: Any) -> SafeString | str:
    if queues.is_paused(config, job.queue_name):
        return "Its queue is paused."
    workers = liveness.live(config, Process.Kind.WORKER)
    taking = sum(_selects(worker, job.queue_name) for worker in workers)
    if taking:
        one = "1 live worker takes" if taking == 1 else f"{taking:,} live workers take"
        return f"Its turn has not come: {one} jobs from its queue, by priority and then in order."
    if workers:
        others = "1 live worker" if len(workers) == 1 else f"{len(workers):,} live workers"
        return f"No worker selects its queue: {others} of this backend take jobs from others."
    return _started("Nothing works this backend: no worker is alive.", config)


def _why_scheduled(config: BackendConfig, job: Any, now: datetime) -> SafeString | str:
    at = job.scheduled_execution.scheduled_at
    if liveness.live(config, Process.Kind.DISPATCHER):
        return f"It is scheduled, and due in {since(now, at)}." if aware(at) > now else "It is due: within a moment."
    due = f"in {since(now, at)}" if aware(at) > now else "now"
    return _started(f"It is scheduled, and due {due}. No dispatcher is alive to make it ready then.", config)


def _why_blocked(config: BackendConfig, job: Any, holders: Sequence[tuple[Job, str]]) -> SafeString | str:
    others = [(holder, url) for holder, url in holders if holder.pk != job.pk]
    if others:
        holder, url = others[0]
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        doing = "runs" if holder.claimed else "is ready to run"
        return format_html("Its key is held by {}, which {}{}.", link(url, f"job {holder.pk}"), doing, more)
    if liveness.live(config, Process.Kind.DISPATCHER):
        return "No job holds its key: a dispatcher lets it go on within its concurrency maintenance."
    return _started("No job holds its key, and no dispatcher is alive to let it go on.", config)


def _started(text: str, config: BackendConfig) -> SafeString:
    return format_html("{} Start it: <code>{}</code>", text, liveness.command(config.alias))


def _selects(worker: Mapping[str, Any], queue_name: str) -> bool:
    told = worker.get("queues")
    names = [text for text in told if isinstance(text, str)] if isinstance(told, list | tuple) else []
    return any(Selector.parse(text).matches(queue_name) for text in names)
