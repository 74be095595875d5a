"""The cards on top of the dashboard, and the facts of a backend's configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from django.db import connections

from dj_queue.config import BackendConfig
from dj_queue.models import FailedExecution, Process
from dj_queue.operations.observation import Observation, ObservedQueue
from dj_queue_admin import liveness
from dj_queue_admin.links import Links
from dj_queue_admin.templatetags.dj_queue_admin import duration, number


@dataclass(frozen=True)
class Card:
    key: str
    title: str
    value: str
    details: tuple[str, ...]
    tone: str = ""  # good, bad, warn or nothing
    link: str | None = None


@dataclass(frozen=True)
class Total:
    """A sum over queues; `capped` where the count of one of them is a lower bound."""

    count: int
    capped: bool

    def __str__(self) -> str:
        return number(self.count, self.capped)


def total(queues: Iterable[ObservedQueue], *states: str) -> Total:
    queues = list(queues)
    return Total(
        sum(getattr(queue, state) for queue in queues for state in states),
        any(state in queue.capped for queue in queues for state in states),
    )


def counted(count: int | Total, one: str, many: str = "") -> str:
    """A number and what it counts: "1 worker", "12 workers"."""
    text = number(count) if isinstance(count, int) else str(count)
    return f"{text} {one if text == '1' else many or f'{one}s'}"


def least(count: Total) -> str:
    """ "12", or "at least 10,000"."""
    return f"at least {number(count.count)}" if count.capped else number(count.count)


def cards(seen: Observation, links: Links) -> list[Card]:
    """Queues, backlog, attention, runtime and control plane."""
    queues = seen.queues
    paused = sum(queue.paused for queue in queues)
    failed = total(queues, "failed")
    live, late = _by_life(seen)
    workers = [process for process in seen.processes if process.live and process.kind == Process.Kind.WORKER]
    threads = sum(_whole(process.metadata.get("threads")) for process in workers)
    alive = f"{counted(len(workers), 'worker')}, {counted(live, 'process', 'processes')} alive"
    running = total(queues, "claimed")
    waits = [queue.latency_seconds for queue in queues if queue.latency_seconds is not None]
    return [
        Card(
            "queues",
            "Queues",
            number(len(queues), "queues" in seen.capped),
            (f"{paused} paused",),
            "warn" if paused else "",
        ),
        Card(
            "backlog",
            "Backlog",
            str(total(queues, "ready")),
            (
                f"{total(queues, 'scheduled')} scheduled",
                f"{total(queues, 'blocked')} blocked",
                f"longest wait {duration(max(waits))}" if waits else _nothing_goes_on(queues),
            ),
        ),
        Card(
            "attention",
            "Attention",
            str(failed),
            ("failed jobs", counted(late, "late process", "late processes")),
            "bad" if failed.count or late else "good",
            links.rows(FailedExecution),
        ),
        Card(
            "runtime",
            "Runtime",
            str(running),
            (
                f"running on {counted(threads, 'thread')}",
                alive,
            ),
            "" if workers else "bad",
        ),
        Card(
            "control-plane",
            "Control plane",
            number(len(seen.recurring), "recurring" in seen.capped),
            ("recurring tasks", f"{number(seen.semaphore_count)} semaphores", _control(seen)),
        ),
    ]


def facts(config: BackendConfig, seen: Observation) -> list[tuple[str, str]]:
    """What the configuration says, as this process reads it."""
    connection = connections[config.database_alias]
    return [
        ("mode", config.mode),
        ("queue database", f"{config.database_alias} ({connection.display_name})"),
        ("scheduler", _scheduler(config)),
        ("notify", _notify(config, connection.vendor)),
        (
            "skip locked",
            "on" if config.use_skip_locked and connection.features.has_select_for_update_skip_locked else "off",
        ),
        (
            "heartbeat",
            f"every {duration(config.process_heartbeat_interval)},"
            f" late after {duration(liveness.late_after(config))},"
            f" stale after {duration(config.process_alive_threshold)}",
        ),
        ("retention", _retention(config)),
        ("recurring", f"{len(config.recurring)} in the settings, {number(len(seen.recurring))} stored"),
        ("semaphores", f"{number(seen.semaphore_count)} in this database"),
    ]


def _nothing_goes_on(queues: Iterable[ObservedQueue]) -> str:
    """Where no queue has a longest wait: none has ready jobs, but for those that are paused."""
    return "all in paused queues" if total(queues, "ready").count else "nothing is ready"


def _by_life(seen: Observation) -> tuple[int, int]:
    life = Counter(process.live for process in seen.processes)
    return life[True], life[False]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _control(seen: Observation) -> str:
    kinds = {process.kind for process in seen.processes if process.live}
    missing = [kind.label.lower() for kind in (Process.Kind.DISPATCHER, Process.Kind.SCHEDULER) if kind not in kinds]
    return f"no {' and no '.join(missing)}" if missing else "dispatcher and scheduler alive"


def _scheduler(config: BackendConfig) -> str:
    if config.scheduler is None or not config.scheduler_needed:
        return "not needed" if not config.skip_recurring else "skipped"
    dynamic = "with" if config.scheduler.dynamic_tasks_enabled else "without"
    return f"every {duration(config.scheduler.polling_interval)}, {dynamic} dynamic tasks"


def _notify(config: BackendConfig, vendor: str) -> str:
    if vendor != "postgresql":
        return "polling"
    return "LISTEN/NOTIFY" if config.listen_notify else "off: polling"


def _retention(config: BackendConfig) -> str:
    finished = _kept(config.clear_finished_jobs_after) if config.preserve_finished_jobs else "not kept"
    return f"finished {finished}, failed {_kept(config.clear_failed_jobs_after)}"


def _kept(seconds: float | None) -> str:
    return "for ever" if seconds is None else duration(seconds)
