"""What the overview of a backend shows: a fixed number of statements, whatever it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Model
from django.http import HttpRequest, QueryDict

from dj_queue.config import BackendConfig
from dj_queue.models import Job, Pause, Process, RecurringTask, Semaphore
from dj_queue.operations import history, observation
from dj_queue.operations.history import RANGES, History, Range
from dj_queue.operations.observation import Observation, ObservedProcess, ObservedQueue
from dj_queue_admin import hooks, liveness, permissions
from dj_queue_admin.dashboard import alerts, charts, figures
from dj_queue_admin.dashboard.agreement import agreeing
from dj_queue_admin.dashboard.tables import Column, Table, changed
from dj_queue_admin.links import Links
from dj_queue_admin.records import keys

CAP = 10_000
QUEUES, PROCESSES, RECURRING, SEMAPHORES = 18, 10, 12, 12

_QUEUE_COLUMNS = [
    Column("name", "Queue", lambda queue: queue.name),
    Column("ready", "Ready", lambda queue: queue.ready, numeric=True, largest_first=True),
    Column("claimed", "Running", lambda queue: queue.claimed, numeric=True, largest_first=True),
    Column("scheduled", "Scheduled", lambda queue: queue.scheduled, numeric=True, largest_first=True),
    Column("blocked", "Blocked", lambda queue: queue.blocked, numeric=True, largest_first=True),
    Column("failed", "Failed", lambda queue: queue.failed, numeric=True, largest_first=True),
    Column("finished", "Finished", lambda queue: queue.finished, numeric=True, largest_first=True),
    Column("latency", "Longest wait", lambda queue: queue.latency_seconds, numeric=True, largest_first=True),
    Column("workers", "Workers", lambda queue: queue.live_worker_count, numeric=True, largest_first=True),
    Column("actions", "Actions"),
]
_PROCESS_COLUMNS = [
    Column("name", "Process", lambda group: group.head.name),
    Column("kind", "Kind", lambda group: group.head.kind),
    Column("host", "Host and pid", lambda group: (group.head.hostname, group.head.pid)),
    Column("does", "Does"),
    Column("heartbeat", "Heartbeat", lambda group: group.head.last_heartbeat_at, largest_first=True),
]
_RECURRING_COLUMNS = [
    Column("key", "Task", lambda task: task.key),
    Column("schedule", "Schedule", lambda task: task.schedule),
    Column("queue", "Queue", lambda task: task.queue_name),
    Column("last", "Last run", lambda task: task.last_run_at, largest_first=True),
    Column("next", "Next run", lambda task: task.next_run_at),
]
_SEMAPHORE_COLUMNS = [
    Column("key", "Concurrency key", lambda semaphore: semaphore.key),
    Column(
        "taken",
        "Taken",
        lambda semaphore: semaphore.limit - semaphore.available_slots,
        numeric=True,
        largest_first=True,
    ),
    Column("waiters", "Waiting", lambda semaphore: semaphore.blocked_waiters, numeric=True, largest_first=True),
    Column("expires", "Expires", lambda semaphore: semaphore.expires_at),
]


@dataclass(frozen=True)
class ProcessGroup:
    """A supervisor with its children, or a process on its own."""

    head: ObservedProcess
    children: Sequence[ObservedProcess]

    @property
    def members(self) -> list[tuple[ObservedProcess, str, bool]]:
        """Each process, what it does, and whether it is a child."""
        return [(self.head, does(self.head), False), *((child, does(child), True) for child in self.children)]


def observe(config: BackendConfig) -> Observation:
    """What the dashboard's pages are made of: a process that misses heartbeats is not live here."""
    return observation.observe(config, cap=CAP, live_within=liveness.late_after(config))


def context(request: HttpRequest, config: BackendConfig, links: Links) -> dict[str, Any]:
    seen = observe(config)
    listed = _seen_by(request, config, links, seen)
    within = range_of(request.GET)
    semaphores = Table("semaphores_", _SEMAPHORE_COLUMNS, listed.semaphores, size=SEMAPHORES, query=request.GET)
    return {
        "observation": seen,
        "cards": figures.cards(seen, links),
        "alerts": alerts.alerts(seen, listed, config, links),
        "promised": alerts.promised(seen, listed.recurring),
        "facts": figures.facts(config, seen),
        "queues": Table("queues_", _QUEUE_COLUMNS, seen.queues, size=QUEUES, query=request.GET),
        "processes": Table("processes_", _PROCESS_COLUMNS, groups(listed.processes), size=PROCESSES, query=request.GET),
        "recurring": Table("recurring_", _RECURRING_COLUMNS, listed.recurring, size=RECURRING, query=request.GET),
        "semaphores": semaphores,
        "keys": keys.visible(config, [each.key for each in semaphores.page.object_list]) if listed.semaphores else {},
        "links_to_rows": {
            model._meta.model_name: links.rows(model) for model in (Job, Pause, Process, RecurringTask, Semaphore)
        },
        "empty": is_empty(seen),
        "command": liveness.command(config.alias),
        "may": allowed(request),
        **charts_context(request, config, history.history_of(config, within), within, seen.queues),
    }


def _seen_by(request: HttpRequest, config: BackendConfig, links: Links, seen: Observation) -> Observation:
    """Without rows that the project's own admins keep from the visitor."""

    def kept[T](model: type[Model], items: tuple[T, ...], key: str, field: str) -> tuple[T, ...]:
        if not hooks.may_see(links.site, request, model):
            return ()
        if hooks.chosen(links.site, request, model) is None:
            return items
        rows = hooks.seen(links.site, request, model, model._default_manager.using(config.database_alias).all())
        known = set(rows.values_list(field, flat=True))
        return tuple(item for item in items if getattr(item, key) in known)

    return replace(
        seen,
        processes=kept(Process, seen.processes, "id", "pk"),
        recurring=kept(RecurringTask, seen.recurring, "key", "key"),
        semaphores=kept(Semaphore, seen.semaphores, "key", "key"),
    )


def charts_context(
    request: HttpRequest, config: BackendConfig, past: History, within: Range, queues: Sequence[ObservedQueue]
) -> dict[str, Any]:
    """The charts of these queues, which say nothing that their numbers refute."""
    past = agreeing(past, queues)
    ready, blocked = (figures.least(figures.total(queues, state)) for state in ("ready", "blocked"))
    now = f"{ready} ready, {blocked} blocked now"
    times = [past.steps[n * (len(past.steps) - 1) // 4].start for n in range(5)]
    return {
        "history": past,
        "charts": charts.charts(past, now, keeps_finished=config.preserve_finished_jobs),
        "ranges": [(each, changed(request.GET, {"range": each.name}), each == within) for each in RANGES],
        "times": times,
        "time_format": "M j" if within.name == "7d" else "H:i",
        "time_style": "day" if within.name == "7d" else "clock",
    }


def range_of(query: QueryDict) -> Range:
    return next((each for each in RANGES if each.name == query.get("range")), RANGES[0])


def allowed(request: HttpRequest) -> dict[str, bool]:
    return {
        "pause": permissions.may(request, "pause", Pause),
        "clear": permissions.may(request, "clear", Job),
    }


def is_empty(seen: Observation) -> bool:
    return not (seen.queues or seen.processes or seen.recurring)


def groups(processes: Sequence[ObservedProcess]) -> list[ProcessGroup]:
    """Children under their supervisor; those whose supervisor is gone, or is itself a child, stand alone."""
    known = {process.id for process in processes}
    alone = {process.id for process in processes if process.supervisor_id not in known}
    children: dict[int | None, list[ObservedProcess]] = {}
    heads = []
    for process in processes:
        if process.supervisor_id in alone:
            children.setdefault(process.supervisor_id, []).append(process)
        else:
            heads.append(process)
    return [ProcessGroup(head, children.get(head.id, ())) for head in heads]


def does(process: ObservedProcess) -> str:
    """What a process's row tells of it, in a line."""
    told = process.metadata if isinstance(process.metadata, dict) else {}
    kind = process.kind
    if kind == Process.Kind.WORKER:
        queues = told.get("queues")
        names = ", ".join(map(str, queues)) if isinstance(queues, list) else str(queues or "*")
        return f"queues {names}; {told.get('threads', '?')} threads"
    if kind == Process.Kind.DISPATCHER:
        return f"up to {told.get('batch_size', '?')} at once"
    if kind == Process.Kind.SCHEDULER:
        dynamic = "dynamic tasks" if told.get("dynamic_tasks_enabled") else "no dynamic tasks"
        cleanup = "cleanup" if told.get("cleanup_enabled") else "no cleanup"
        return f"{told.get('static_task_count', 0)} static, {dynamic}, {cleanup}"
    return f"{told.get('mode', '?')} mode"


def queue_named(seen: Observation, name: str) -> ObservedQueue | None:
    return next((queue for queue in seen.queues if queue.name == name), None)
