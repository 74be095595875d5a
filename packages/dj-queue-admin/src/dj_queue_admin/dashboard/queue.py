"""What the page of one queue shows: its numbers, its charts, and its jobs of one state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import Http404, HttpRequest
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.models import (
    STATES,
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Pause,
    ReadyExecution,
    RecurringTask,
    ScheduledExecution,
)
from dj_queue.operations import history
from dj_queue.operations.history import RANGES
from dj_queue.operations.observation import ObservedQueue
from dj_queue_admin import hooks, permissions
from dj_queue_admin.dashboard import overview
from dj_queue_admin.dashboard.tables import Column, Heading, Pages, changed, order_of, parse_sort, sort_address
from dj_queue_admin.links import Links
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import filters, shown
from dj_queue_admin.records.job import arguments, key_of
from dj_queue_admin.templatetags.dj_queue_admin import NOTHING

SIZE: Final = 100
# Of this many jobs of a state, any order is cheap.
LOOK: Final = 10_000


@dataclass(frozen=True)
class State:
    """How the jobs of one state are found, in which order they come, and what may be done to them."""

    name: str
    label: str
    model: type[Any]
    path: str  # from the model to the job
    order: tuple[str, ...]  # by index
    at: str  # the time that matters in this state
    at_label: str
    verbs: tuple[Verb, ...]

    @property
    def job_id(self) -> str:
        """The field of the model that holds the job's id."""
        return "job_id" if self.path else "id"


_BY_NAME: Final = {
    state.name: state
    for state in (
        State(
            "ready", "Ready", ReadyExecution, "job__", ("-priority", "id"), "created_at", "Ready since", ("discard",)
        ),
        State("claimed", "Running", ClaimedExecution, "job__", ("id",), "created_at", "Claimed", ()),
        State(
            "scheduled",
            "Scheduled",
            ScheduledExecution,
            "job__",
            ("scheduled_at", "id"),
            "scheduled_at",
            "Due",
            ("discard",),
        ),
        State("blocked", "Blocked", BlockedExecution, "job__", ("id",), "created_at", "Blocked since", ("discard",)),
        State("failed", "Failed", FailedExecution, "job__", ("-id",), "created_at", "Failed", ("retry", "discard")),
        State("finished", "Finished", Job, "", ("-id",), "finished_at", "Finished", ("enqueue",)),
    )
}


@dataclass(frozen=True)
class Line:
    """One job as a row of the table."""

    job: Job
    arguments: SafeString
    at: datetime | None
    detail: str


@dataclass(frozen=True)
class Jobs:
    headings: Sequence[Heading]
    pages: Pages
    lines: Sequence[Line]
    note: str  # what was left out
    searched: bool


def state_named(name: str) -> State:
    """Raises `Http404` for what is no state."""
    if name not in _BY_NAME:
        raise Http404(f"{name!r} is no state of a job. Known: {', '.join(STATES)}.")
    return _BY_NAME[name]


def exists(config: BackendConfig, name: str) -> bool:
    """Whether a queue has jobs, a pause or a recurring task: that is what a queue is."""
    models: tuple[type[Any], ...] = (Job, Pause, RecurringTask)
    return any(
        model.objects.using(config.database_alias).filter(backend_alias=config.alias, queue_name=name).exists()
        for model in models
    )


def context(request: HttpRequest, config: BackendConfig, links: Links, name: str) -> dict[str, Any]:
    if not exists(config, name):
        raise Http404(f"The backend {config.alias!r} has no queue {name!r}.")
    seen = overview.observe(config)
    queue = overview.queue_named(seen, name) or _nothing(name)
    state = state_named(request.GET.get("state") or _first_state(queue))
    within = overview.range_of(request.GET)
    past = history.history_of(config, within, queue_name=name)
    return {
        "observation": seen,
        "queue": queue,
        "state": state,
        "tabs": [
            (
                each.label,
                getattr(queue, each.name),
                each.name in queue.capped,
                changed(request.GET, {"state": each.name, "page": None, "sort": None}),
                each is state,
            )
            for each in _BY_NAME.values()
        ],
        "jobs": jobs(request, config, links, name, state, many=getattr(queue, state.name) >= LOOK),
        "listed": hooks.may_see(links.site, request, Job),
        "verbs": [verb for verb in state.verbs if permissions.may(request, verb, Job)],
        "may": overview.allowed(request),
        "may_read": permissions.may_read(request, Job),
        "q": request.GET.get("q", ""),
        "since": request.GET.get("since", ""),
        "sinces": [("", "at any time"), *((each.name, f"within {each.label}") for each in RANGES)],
        "hidden": [(key, value) for key, value in request.GET.items() if key not in ("q", "since", "page")],
        "job_links": links.rows(Job, queue=name),
        **overview.charts_context(request, config, past, within, [queue]),
    }


def rows(config: BackendConfig, name: str, state: State) -> QuerySet[Any]:
    """Every row of a queue in a state: of its own table, or of the jobs for those that are finished."""
    found: QuerySet[Any] = state.model.objects.using(config.database_alias)
    if state.name == "finished":
        return found.filter(backend_alias=config.alias, queue_name=name, finished_at__isnull=False)
    if state.name == "claimed":
        found = found.filter(job__backend_alias=config.alias, job__queue_name=name)
    else:
        found = found.filter(backend_alias=config.alias, queue_name=name)
    return found.select_related("job", "process") if state.name == "claimed" else found.select_related("job")


def jobs(request: HttpRequest, config: BackendConfig, links: Links, name: str, state: State, *, many: bool) -> Jobs:
    """One page of a queue's jobs in a state, searched or sorted as the address asks."""
    given = {"since": request.GET.get("since", "")}
    contents = permissions.may_read(request, Job)
    text = request.GET.get("q", "").strip()
    mine = hooks.chosen(links.site, request, Job)
    chosen = filters.read(given, config, contents=contents, text=text, status=state.name, queue=name)
    chosen = replace(chosen, jobs=mine)
    searched = bool(text or given["since"])
    # To sort is to read all of them: offered where that is cheap, and what was searched keeps its order.
    sortable = not many and not searched and state.name != "finished"
    columns = _columns(state, sortable=sortable)
    sort = parse_sort(request.GET.get("sort", ""), [column.key for column in columns if column.value])
    found: Any = chosen.found if hooks.may_see(links.site, request, Job) else []
    if sort and not isinstance(found, list):
        order = [f"{'-' if down else ''}{_fields(state)[key]}" for key, down in sort]
        sorted_rows = hooks.seen(links.site, request, Job, rows(config, name, state), state.job_id)
        found = sorted_rows.order_by(*order, *state.order).values_list(state.job_id, flat=True)
    paginator = Paginator(found, SIZE)
    # It would count them all.
    paginator.__dict__["count"] = chosen.count.number if not isinstance(found, list) else len(found)
    page = paginator.get_page(request.GET.get("page"))
    headings = [
        Heading(
            column, order_of(column.key, sort), sort_address(request.GET, "", column, sort) if column.value else None
        )
        for column in columns
    ]
    note = chosen.note or " ".join(chosen.mistakes)
    if not note and chosen.count.more:
        note = f"The first {chosen.count.number:,} are listed here."
    return Jobs(
        headings, Pages(page, request.GET, ""), _lines(config, name, state, list(page), contents), note, searched
    )


def _lines(config: BackendConfig, name: str, state: State, ids: Sequence[UUID], contents: bool) -> list[Line]:
    """The jobs of one page, without what may be large; those that are gone meanwhile are left out."""
    found = rows(config, name, state).filter(**{f"{state.job_id}__in": ids})
    found = found.defer(*(f"{state.path}{field}" for field in ("payload", "return_value", "errors")))
    if contents:
        found = shown.as_text(found, shown.LONGEST_IN_LIST, payload_text=f"{state.path}payload")
    lines = {}
    for row in found:
        job = row.job if state.path else row
        job.payload_text = getattr(row, "payload_text", None)
        lines[job.pk] = Line(job, arguments(job), getattr(row, state.at), shown.visible(_detail(row, job, state)))
    return [lines[job_id] for job_id in ids if job_id in lines]


# ---- sorting ----------------------------------------------------------------------------------------


def _columns(state: State, *, sortable: bool) -> list[Column]:
    def value(key: str) -> Any:
        return (lambda _: key) if sortable and key in _fields(state) else None

    return [
        Column("task", "Task", value("task")),
        Column("priority", "Priority", value("priority"), numeric=True, largest_first=True),
        Column("enqueued", "Enqueued", value("enqueued"), largest_first=True),
        Column("at", state.at_label, value("at"), largest_first=True),
        Column("detail", _DETAILS[state.name]),
    ]


def _fields(state: State) -> dict[str, str]:
    return {
        "task": f"{state.path}task_path",
        "priority": f"{state.path}priority",
        "enqueued": f"{state.path}id",
        "at": state.at,
    }


# ---- what a row says --------------------------------------------------------------------------------

_DETAILS: Final = {
    "ready": "Concurrency key",
    "claimed": "Process",
    "scheduled": "Concurrency key",
    "blocked": "Concurrency key",
    "failed": "Error",
    "finished": "Worker",
}


def _detail(row: Any, job: Job, state: State) -> str:
    if state.name == "failed":
        return str(row.exception_class)
    if state.name == "claimed":
        return str(row.process) if row.process else NOTHING
    if state.name == "finished":
        return str(job.worker_ids[-1]) if job.worker_ids and isinstance(job.worker_ids, list) else NOTHING
    return key_of(job) or NOTHING


def _first_state(queue: ObservedQueue) -> str:
    """What an operator comes for: failures, then what waits."""
    return next(
        (name for name in ("failed", "ready", "claimed", "scheduled", "blocked") if getattr(queue, name)), "finished"
    )


def _nothing(name: str) -> ObservedQueue:
    """A queue beyond those that are listed, or gone since a moment ago."""
    return ObservedQueue(
        name=name, ready=0, scheduled=0, claimed=0, blocked=0, failed=0, finished=0, capped=(), paused=False,
        latency_seconds=None, oldest_scheduled_at=None, oldest_blocked_at=None, live_worker_count=0,
    )  # fmt: skip
