"""What a backend looks like now, for `stats.json`, metrics and the dashboard, within a bounded cost.

A fixed number of statements, however many queues there are, and every row found by index. Nothing is
counted beyond a cap: `capped` names what is only a lower bound, and a list that is cut short says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import Error
from django.db.backends.utils import CursorWrapper
from django.db.models import DateTimeField, Exists, OuterRef, Subquery, Value

from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, QueueCounts, Selector, elapsed
from dj_queue.models import FailedExecution, Process, RecurringExecution, RecurringTask, Semaphore
from dj_queue.operations import readable, recurring, transactions
from dj_queue.operations.schedule import as_stored, aware, latest_tick, next_tick

logger = logging.getLogger("dj_queue")

# The most jobs of a queue and a state that are counted.
CAP = 50_000
# The most queues, processes, recurring tasks and semaphores that are listed.
MOST_QUEUES = 10_000
MOST_PROCESSES = 10_000
MOST_RECURRING = 10_000
MOST_SEMAPHORES = 1_000

_DAY = 86_400

# Ready jobs of each priority that are looked at for the longest wait: more than a worker gives back at once.
_WAITING_LOOK = 500
# Where another state exceeds the cap, finished jobs are counted among this many of the oldest, in this many queues.
_FINISHED_LOOK = 10_000
_FINISHED_QUEUES = 100


@dataclass(frozen=True, slots=True)
class ObservedQueue:
    name: str
    ready: int
    scheduled: int
    claimed: int
    blocked: int
    failed: int
    finished: int
    capped: tuple[str, ...]  # the states whose number is a lower bound
    paused: bool
    latency_seconds: float | None  # of the longest waiting ready job; None if there is none, or while paused
    oldest_scheduled_at: datetime | None
    oldest_blocked_at: datetime | None
    live_worker_count: int


@dataclass(frozen=True, slots=True)
class ObservedProcess:
    id: int
    kind: str
    name: str
    pid: int
    hostname: str
    metadata: dict[str, Any]
    supervisor_id: int | None
    last_heartbeat_at: datetime
    age: float  # seconds since that, by the database's clock
    live: bool


@dataclass(frozen=True, slots=True)
class ObservedRecurringTask:
    key: str
    task_path: str
    queue_name: str
    schedule: str
    timezone: str | None
    static: bool
    last_run_at: datetime | None  # the last tick that was enqueued
    next_run_at: datetime | None  # the next tick of its schedule
    valid: bool  # whether its schedule and time zone can be read
    missed_at: datetime | None  # the last tick that should have been enqueued a good while ago, and was not
    last_run_failed: bool  # whether the job of the last tick is failed now


@dataclass(frozen=True, slots=True)
class ObservedSemaphore:
    key: str
    available_slots: int
    limit: int
    blocked_waiters: int
    capped: bool  # whether the number of waiters is a lower bound
    expires_at: datetime | None  # None if it cannot be read


@dataclass(frozen=True, slots=True)
class Observation:
    """One backend alias at one time. Semaphores are the whole database's."""

    backend_alias: str
    database_alias: str
    process_alive_threshold: float
    now: datetime  # by the database's clock
    queues: tuple[ObservedQueue, ...]
    processes: tuple[ObservedProcess, ...]
    recurring: tuple[ObservedRecurringTask, ...]
    semaphores: tuple[ObservedSemaphore, ...]
    semaphore_count: int
    capped: tuple[str, ...]  # which of the lists above were cut short


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A backend alias whose database cannot be read."""

    backend_alias: str
    database_alias: str


def observe(config: BackendConfig, *, cap: int = CAP, live_within: float | None = None) -> Observation:
    """Look at queues, processes, recurring tasks and semaphores. Raises the database's error if that is away.

    A process counts as live for `live_within` seconds after a heartbeat, `process_alive_threshold` by default.
    """
    within = config.process_alive_threshold if live_within is None else live_within

    def read(dialect: Dialect, cursor: CursorWrapper) -> Observation:
        now = dialect.now(cursor)
        cut: list[str] = []
        processes = _up_to(MOST_PROCESSES, _processes(config, now, MOST_PROCESSES + 1, within), "processes", cut)
        return Observation(
            backend_alias=config.alias,
            database_alias=config.database_alias,
            process_alive_threshold=config.process_alive_threshold,
            now=now,
            queues=_up_to(MOST_QUEUES, _queues(config, dialect, cursor, now, processes, cap), "queues", cut),
            processes=processes,
            recurring=_up_to(MOST_RECURRING, _recurring(config, now, MOST_RECURRING + 1), "recurring", cut),
            semaphores=_up_to(MOST_SEMAPHORES, _semaphores(dialect, cursor, cap), "semaphores", cut),
            semaphore_count=Semaphore.objects.using(config.database_alias)[:cap].count(),
            capped=tuple(cut),
        )

    return transactions.observe(config.database_alias, read)


def observe_all(configs: Iterable[BackendConfig], *, cap: int = CAP) -> list[Observation | Unavailable]:
    """Look at several aliases. One whose database cannot be read keeps nobody from seeing the others."""
    found: list[Observation | Unavailable] = []
    for config in configs:
        try:
            found.append(observe(config, cap=cap))
        except Error as error:
            logger.warning("dj_queue %s cannot be observed: %s", config.alias, error)
            found.append(Unavailable(config.alias, config.database_alias))
    return found


# ---- queues -----------------------------------------------------------------------------------------


def _queues(
    config: BackendConfig,
    dialect: Dialect,
    cursor: CursorWrapper,
    now: datetime,
    processes: Sequence[ObservedProcess],
    cap: int,
) -> list[ObservedQueue]:
    counts = dialect.queue_counts(cursor, alias=config.alias, cap=cap, most=MOST_QUEUES + 1)
    since = dialect.waiting_since(cursor, alias=config.alias, look=_WAITING_LOOK)
    unknown = [each.name for each in counts if _exceeded(each, cap)][:_FINISHED_QUEUES]
    look = min(cap, _FINISHED_LOOK)
    finished = dialect.finished_among_oldest(cursor, alias=config.alias, queues=unknown, look=look) if unknown else {}
    workers = _selections(processes)
    queues = []
    for each in counts:
        states, capped = _states(each, finished.get(each.name, 0), cap)
        waits = None if each.paused else since.get(each.name)
        queues.append(
            ObservedQueue(
                name=each.name,
                **states,
                capped=capped,
                paused=each.paused,
                latency_seconds=None if waits is None else max(0.0, (now - waits).total_seconds()),
                oldest_scheduled_at=each.oldest_scheduled_at,
                oldest_blocked_at=each.oldest_blocked_at,
                live_worker_count=sum(
                    count
                    for selectors, count in workers.items()
                    if any(each.name.startswith(name) if prefix else each.name == name for name, prefix in selectors)
                ),
            )
        )
    return queues


def _states(counts: QueueCounts, finished: int, cap: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """The number of jobs in each state, and of which there may be more."""
    states = {
        "ready": counts.ready,
        "scheduled": counts.scheduled,
        "claimed": counts.claimed,
        "blocked": counts.blocked,
        "failed": counts.failed,
    }
    capped = _exceeded(counts, cap)
    if capped or counts.jobs is None:
        # How many of its jobs are left for being finished, nobody knows: this many are, for certain.
        capped.append("finished")
    else:
        # What is in no other state. No index has it: a finish changes nothing that is indexed.
        finished = max(0, counts.jobs - sum(states.values()))
        if counts.jobs > cap:
            capped.append("finished")
    states["finished"] = finished
    return {state: min(count, cap) for state, count in states.items()}, tuple(capped)


def _exceeded(counts: QueueCounts, cap: int) -> list[str]:
    exceeded = [state for state in ("ready", "scheduled", "blocked", "failed") if getattr(counts, state) > cap]
    return [*exceeded, "claimed"] if counts.claimed_capped else exceeded


def _selections(processes: Sequence[ObservedProcess]) -> Counter[tuple[Selector, ...]]:
    """What the live workers select, and how many select it."""
    return Counter(
        tuple(Selector.parse(text) for text in _texts(process.metadata.get("queues", ())))
        for process in processes
        if process.live and process.kind == Process.Kind.WORKER
    )


def _texts(told: Any) -> list[str]:
    """What a process tells of its queues, without what is none: the row may be of another version."""
    return [text for text in told if isinstance(text, str)] if isinstance(told, list | tuple) else []


# ---- processes, recurring tasks, semaphores ---------------------------------------------------------


def _processes(config: BackendConfig, now: datetime, most: int, live_within: float) -> list[ObservedProcess]:
    rows = Process.objects.using(config.database_alias).filter(backend_alias=config.alias).order_by("pk")[:most]
    aged = [(row, _age(row.last_heartbeat_at, now)) for row in readable.read(rows).rows]
    return [
        ObservedProcess(
            id=row.pk,
            kind=row.kind,
            name=row.name,
            pid=row.pid,
            hostname=row.hostname,
            metadata=row.metadata if isinstance(row.metadata, dict) else {},
            supervisor_id=row.supervisor_id,
            last_heartbeat_at=row.last_heartbeat_at,
            age=age,
            live=age <= live_within,
        )
        for row, age in aged
    ]


def _age(at: datetime, now: datetime) -> float:
    """Seconds since a heartbeat. One that is still to come in more than a day was none: such a row lives for ever."""
    ahead = (aware(at) - aware(now)).total_seconds()
    return ahead if ahead > _DAY else elapsed(at, now)


def _recurring(config: BackendConfig, now: datetime, most: int) -> list[ObservedRecurringTask]:
    using = config.database_alias
    ticks = RecurringExecution.objects.using(using).filter(backend_alias=config.alias, task_key=OuterRef("key"))
    rows = RecurringTask.objects.using(using).filter(backend_alias=config.alias)
    last = Subquery(ticks.order_by("-run_at").values("run_at")[:1])
    failed = FailedExecution.objects.using(using).filter(job_id=OuterRef("last_job_id"))
    told = rows.annotate(last_run_at=last, last_job_id=Subquery(ticks.order_by("-run_at").values("job_id")[:1]))
    found, lost = readable.read(told.annotate(last_run_failed=Exists(failed)).order_by("key")[:most])
    if lost:  # perhaps only its last tick
        nothing = {"last_run_at": Value(None, DateTimeField()), "last_run_failed": Value(False)}
        timeless = rows.filter(pk__in=lost).annotate(**nothing)
        found = sorted([*found, *readable.read(timeless).rows], key=lambda row: row.key)
    ticks_of = _Ticks(config, aware(now))
    return [
        ObservedRecurringTask(
            key=row.key,
            task_path=row.task_path,
            queue_name=row.queue_name,
            schedule=row.schedule,
            timezone=row.timezone,
            static=row.static,
            last_run_at=row.last_run_at,
            last_run_failed=row.last_run_failed,
            **ticks_of.of(row),
        )
        for row in found
    ]


class _Ticks:
    """When schedules fire, around one time: many tasks share one, and to reckon takes longer than to read the rows."""

    def __init__(self, config: BackendConfig, now: datetime) -> None:
        self._now = now
        self._missed = now - recurring.missed_after(config)
        self._known: dict[tuple[str, str | None], tuple[datetime | None, datetime | None] | None] = {}

    def of(self, row: Any) -> dict[str, Any]:
        key = (row.schedule, row.timezone)
        if key not in self._known:
            self._known[key] = self._around(*key)
        found = self._known[key]
        if found is None:
            return {"next_run_at": None, "missed_at": None, "valid": False}
        due, following = found
        # A task's first tick is the next one after its row was written.
        since = max((aware(time) for time in (row.updated_at, row.last_run_at) if time is not None), default=self._now)
        missed = due is not None and due > since
        return {
            "next_run_at": following and as_stored(following),
            "missed_at": as_stored(due) if missed and due else None,
            "valid": True,
        }

    def _around(self, schedule: str, zone: str | None) -> tuple[datetime | None, datetime | None] | None:
        """The last tick that should have been enqueued by now, and the next one; None if the schedule is none."""
        try:
            return latest_tick(schedule, zone, self._missed), next_tick(schedule, zone, self._now)
        except Exception:  # a row that was written behind our back: the scheduler reports it
            return None


def _semaphores(dialect: Dialect, cursor: CursorWrapper, cap: int) -> list[ObservedSemaphore]:
    return [
        ObservedSemaphore(
            key=each.key,
            available_slots=each.free,
            limit=each.limit,
            blocked_waiters=min(each.waiters, cap),
            capped=each.waiters > cap,
            expires_at=each.expires_at,
        )
        for each in dialect.semaphores(cursor, cap=cap, most=MOST_SEMAPHORES + 1)
    ]


def _up_to[T](most: int, items: Sequence[T], name: str, cut: list[str]) -> tuple[T, ...]:
    if len(items) > most:
        cut.append(name)
    return tuple(items[:most])
