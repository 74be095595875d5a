"""What the page of one queue shows: its numbers, its charts, and its jobs of one state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.core.paginator import Page, Paginator
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest

from dj_queue.config import BackendConfig
from dj_queue.identifiers import first_id
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
from dj_queue.operations import history, observation
from dj_queue.operations.history import RANGES
from dj_queue.operations.observation import ObservedQueue
from dj_queue_admin import permissions
from dj_queue_admin.dashboard import overview
from dj_queue_admin.dashboard.tables import Column, Heading, Pages, changed, order_of, parse_sort, sort_address
from dj_queue_admin.links import Links
from dj_queue_admin.permissions import Verb
from dj_queue_admin.templatetags.dj_queue_admin import NOTHING

SIZE: Final = 100
# Of so many jobs of a state, any order and any search is cheap. Of more, the first so many are searched.
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
    at: datetime | None
    detail: str


@dataclass(frozen=True)
class Jobs:
    headings: Sequence[Heading]
    page: Page[Any]
    pages: Pages
    lines: Sequence[Line]
    limited: bool  # only the first `LOOK` were searched, and no other order is offered
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
    seen = observation.observe(config, cap=overview.CAP)
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
        "jobs": jobs(request, config, name, state, seen.now, many=getattr(queue, state.name) >= LOOK),
        "verbs": [verb for verb in state.verbs if permissions.may(request, verb, Job)],
        "may": overview.allowed(request),
        "may_read": permissions.may_read(request, Job),
        "q": request.GET.get("q", ""),
        "since": request.GET.get("since", ""),
        "sinces": [("", "at any time"), *((each.name, f"within {each.label}") for each in RANGES)],
        "look": LOOK,
        "hidden": [(key, value) for key, value in request.GET.items() if key not in ("q", "since", "page")],
        "job_links": links.rows(Job, queue=name),
        **overview.charts_context(request, config, past, within),
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


def jobs(request: HttpRequest, config: BackendConfig, name: str, state: State, now: datetime, *, many: bool) -> Jobs:
    """One page of a queue's jobs in a state, searched and sorted as the address asks."""
    found = rows(config, name, state)
    searched = _search(request, state, now)
    if state.name == "finished":
        found, many = _where_some_are(config, name, found)
    elif many and searched:
        found = found.filter(pk__in=list(found.order_by(*state.order).values_list("pk", flat=True)[:LOOK]))
    if searched:
        found = found.filter(searched)
    columns = _columns(state, sortable=not many)
    sort = parse_sort(request.GET.get("sort", ""), [column.key for column in columns if column.value])
    order = [f"{'-' if down else ''}{_fields(state)[key]}" for key, down in sort] + list(state.order)
    page = Paginator(found.order_by(*order)[:LOOK], SIZE).get_page(request.GET.get("page"))
    return Jobs(
        headings=[
            Heading(
                column,
                order_of(column.key, sort),
                sort_address(request.GET, "", column, sort) if column.value else None,
            )
            for column in columns
        ],
        page=page,
        pages=Pages(page, request.GET, ""),
        lines=[_line(row, state) for row in page.object_list],
        limited=many,
        searched=bool(searched),
    )


# ---- searching and sorting --------------------------------------------------------------------------


def _search(request: HttpRequest, state: State, now: datetime) -> Q | None:
    """When it was enqueued; its id; or text in the task's path or, for those who may read them, in the arguments."""
    found = Q()
    since = next((each for each in RANGES if each.name == request.GET.get("since")), None)
    if since is not None:
        found &= Q(**{f"{state.path}id__gte": first_id(now - since.step * since.steps)})
    text = request.GET.get("q", "").strip().replace("\x00", "")
    if text:
        try:
            found &= Q(**{f"{state.path}id": UUID(text)})
        except ValueError:
            among = Q(**{f"{state.path}task_path__icontains": text})
            if permissions.may_read(request, Job):
                among |= Q(**{f"{state.path}payload__icontains": text})
            found &= among
    return found or None


def _where_some_are(config: BackendConfig, name: str, finished: QuerySet[Any]) -> tuple[QuerySet[Any], bool]:
    """Finished jobs among the newest of a queue or, behind a long backlog, among its oldest.

    No index has them: a finish changes nothing that is indexed. Returns whether there may be others.
    """
    every = Job.objects.using(config.database_alias).filter(backend_alias=config.alias, queue_name=name)
    ids = every.values_list("id", flat=True)
    newest = ids.order_by("-id")[LOOK : LOOK + 1].first()
    if newest is None:
        return finished, False
    found = finished.filter(id__gt=newest)
    if found.order_by("-id").exists():
        return found, True
    oldest = ids.order_by("id")[LOOK : LOOK + 1].first()
    return finished.filter(id__lt=oldest), True


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


def _line(row: Any, state: State) -> Line:
    job: Job = row.job if state.path else row
    return Line(job, getattr(row, state.at), _detail(row, job, state))


def _detail(row: Any, job: Job, state: State) -> str:
    if state.name == "failed":
        return str(row.exception_class)
    if state.name == "claimed":
        return str(row.process) if row.process else NOTHING
    if state.name == "finished":
        return str(job.worker_ids[-1]) if job.worker_ids else NOTHING
    return job.concurrency_key or NOTHING


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
