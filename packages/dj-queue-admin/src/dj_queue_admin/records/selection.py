"""Which jobs a filter means, found at a bounded cost however many jobs there are.

A selection is driven by one table: the execution table of its state, the ticks of a recurring task, or the
jobs themselves; and it is read in an order that an index of that table has. What no index serves, a task, a
key, an exception or a text, is looked for in a window: the newest rows of the driving table. Job ids are
UUIDv7, so a time is a range of ids, and narrowing by time moves the window back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db.models import Model, Q, QuerySet

from dj_queue.config import BackendConfig, backend_config, managed_aliases
from dj_queue.identifiers import earliest_at
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    ReadyExecution,
    RecurringExecution,
    ScheduledExecution,
)
from dj_queue_admin.records import shown
from dj_queue_admin.redaction import redaction

WINDOW: Final = 20_000  # rows that are looked at where no index helps
COUNTED: Final = 10_000  # rows that are counted
MATCHES: Final = 1_000  # that a search for text keeps
_LOADED = 200  # of them at a time
_LOADED_AT_ONCE = 25  # and in memory

DRIVERS: Final[dict[str, type[Model]]] = {
    "ready": ReadyExecution,
    "scheduled": ScheduledExecution,
    "claimed": ClaimedExecution,
    "blocked": BlockedExecution,
    "failed": FailedExecution,
}

# Where an index has this order; the operator's next or newest comes first.
_ORDERS: Final[dict[type[Model], tuple[str, ...]]] = {
    ReadyExecution: ("-priority", "id"),
    ScheduledExecution: ("scheduled_at", "id"),
    BlockedExecution: ("id",),
}
# The tables with an index on (backend_alias, queue_name, id).
_BY_QUEUE = (Job, FailedExecution, BlockedExecution)


class Count(NamedTuple):
    number: int
    more: bool = False

    def __str__(self) -> str:
        return f"{self.number:,}{'+' if self.more else ''}"

    @property
    def words(self) -> str:
        return f"more than {self.number:,}" if self.more else f"{self.number:,}"


class _Hits(NamedTuple):
    job_ids: list[Any]
    more: bool = False


@dataclass(frozen=True)
class Selection:
    config: BackendConfig
    state: str = ""
    queue: str = ""
    task: str = ""
    key: str = ""
    recurring: str = ""
    exception: str = ""
    since: datetime | None = None
    until: datetime | None = None
    text: str = ""
    contents: bool = True  # whether the visitor may read, and so search, arguments and messages
    mistakes: tuple[str, ...] = ()
    # Ids of those that the project's own admins show; None for all.
    jobs: QuerySet[Any] | None = None
    failures: QuerySet[Any] | None = None

    # ---- what it finds ------------------------------------------------------------------------------

    @property
    def found(self) -> QuerySet[Any, Any] | list[Any]:
        """The ids of the jobs, in order; only a slice of them is ever to be read."""
        if self.mistakes:
            return []
        if self.text and self.job_id is None:
            return self._hits.job_ids
        return self._rows.order_by(*self._order).values_list(self._job, flat=True)

    @cached_property
    def count(self) -> Count:
        found = self.found
        if isinstance(found, list):
            return Count(len(found), not self.mistakes and self._hits.more)
        # In the order of the list, and so by its index: any other rows may be far apart.
        number = self._rows.order_by(*self._order)[: COUNTED + 1].count()
        return Count(min(number, COUNTED), number > COUNTED)

    @property
    def note(self) -> str:
        """What was left out, for those who read the list."""
        if self.mistakes or self._boundary is None:
            return ""
        rows = {Job: "jobs", RecurringExecution: "runs"}.get(self.model, f"{self.state} jobs")
        where = f" of the queue {self.queue}" if self.queue and self.model in _BY_QUEUE and self._axis == "id" else ""
        within = " in that time" if self.since or self.until else ""
        return (
            f"Searched the newest {WINDOW:,} {rows}{where}{within}. For older ones, narrow"
            f" {'further ' if within else ''}by time."
        )

    def __str__(self) -> str:
        parts = [f"{self.state or 'all'} jobs of {self.config.alias}"]
        for name, value in (
            ("queue", self.queue),
            ("task", self.task),
            ("concurrency key", self.key),
            ("recurring task", self.recurring),
            ("exception", self.exception),
            ("from", self.since and self.since.isoformat()),
            ("until", self.until and self.until.isoformat()),
            ("containing", self.text),
        ):
            if value:
                parts.append(f"{name} {value}")
        return ", ".join(parts)

    # ---- all of it, in pieces -----------------------------------------------------------------------

    @property
    def newest(self) -> int:
        """The id of the newest row of the driving table; 0 if it is empty."""
        return self._table.order_by("-pk").values_list("pk", flat=True).first() or 0

    def piece(self, after: int, last: int, size: int) -> tuple[list[UUID], int | None]:
        """The ids of the matching jobs among the next `size` rows, and the row to go on after; None at the end.

        By the ids of an execution table, up to `last`: what comes later, a job that fails again among it, is
        not part of the selection.
        """
        rows = self._table.filter(self._in_queue if self.model in _BY_QUEUE else Q(), self._in_time)
        rows = rows.filter(pk__gt=after, pk__lte=last)
        looked = list(rows.order_by("pk").values_list("pk", flat=True)[:size])
        if not looked:
            return [], None
        matching = self._table.filter(self._exact, self._in_time, pk__gte=looked[0], pk__lte=looked[-1])
        if self.job_id is not None:
            matching = matching.filter(job_id=self.job_id)
        elif self.text:
            return self._containing(matching.order_by("pk"), size).job_ids, looked[-1]
        return list(matching.order_by("pk").values_list(self._job, flat=True)), looked[-1]

    # ---- the driving table --------------------------------------------------------------------------

    @property
    def model(self) -> type[Model]:
        if self.state in DRIVERS:
            return DRIVERS[self.state]
        return RecurringExecution if self.recurring else Job

    @cached_property
    def job_id(self) -> UUID | None:
        """The id that is searched for, if the text is one."""
        try:
            return UUID(self.text)
        except ValueError:
            return None

    @property
    def _table(self) -> QuerySet[Any]:
        return self.model._default_manager.using(self.config.database_alias)

    @property
    def _job(self) -> str:
        return "pk" if self.model is Job else "job_id"

    @property
    def _prefix(self) -> str:
        return "" if self.model is Job else "job__"

    def _own(self, field: str) -> str:
        """A field of the job, from the driving table's own copy where it has one."""
        names = {each.name for each in self.model._meta.fields}
        return field if field in names else f"job__{field}"

    @property
    def _axis(self) -> str:
        """What the window is measured by, from new to old."""
        if self.model is RecurringExecution:
            return "run_at"
        if self.model is Job or not (self.since or self.until):
            return "id"
        return "created_at" if self.model is FailedExecution else "job_id"

    @property
    def _order(self) -> tuple[str, ...]:
        if not self._unindexed and not (self.since or self.until) and self.model in _ORDERS:
            return _ORDERS[self.model]
        return (f"-{self._axis}",)

    # ---- conditions ---------------------------------------------------------------------------------

    @property
    def _rows(self) -> QuerySet[Any]:
        rows = self._table.filter(self._exact, self._in_time)
        if self.job_id is not None:
            return rows.filter(**{self._job: self.job_id})
        if self._boundary is not None:
            rows = rows.filter(**{f"{self._axis}__gt": self._boundary})
        return rows

    @property
    def _unindexed(self) -> bool:
        """Whether rows have to be looked at one by one."""
        ticks = self.recurring and self.model is not RecurringExecution
        ended = self.state == "finished"
        return bool(self.task or self.key or self.exception or self.text or ticks or ended) or (
            self.model is ClaimedExecution
        )

    @property
    def _among_others(self) -> bool:
        """Whether the table's newest rows may all be those of other aliases."""
        if self.queue or self.model not in _BY_QUEUE:
            return False
        mine = self.config.database_alias
        return sum(backend_config(alias).database_alias == mine for alias in managed_aliases()) > 1

    @cached_property
    def _boundary(self) -> Any:
        """The newest row that is too old to be looked at; None if all are young enough."""
        if not (self._unindexed or self._among_others) or self.job_id is not None:
            return None
        rows = self._table.filter(self._in_time)
        if self.model is RecurringExecution:
            rows = rows.filter(backend_alias=self.config.alias, task_key=self.recurring)
        elif self.queue and self.model in _BY_QUEUE and self._axis == "id":
            rows = rows.filter(self._in_queue)
        axis = self._axis
        return rows.order_by(f"-{axis}").values_list(axis, flat=True)[WINDOW : WINDOW + 1].first()

    @property
    def _in_queue(self) -> Q:
        mine = Q(**{self._own("backend_alias"): self.config.alias})
        return mine & Q(**{self._own("queue_name"): self.queue}) if self.queue else mine

    @property
    def _in_time(self) -> Q:
        if not (self.since or self.until):
            return Q()
        axis = self._axis
        of_ids = axis in ("id", "job_id")
        return _between(axis, *((earliest_at(at) if of_ids else at) if at else None for at in (self.since, self.until)))

    @property
    def _exact(self) -> Q:
        wanted: dict[str, Any] = {}
        for field, value in (("task_path", self.task), ("concurrency_key", self.key)):
            if value:
                wanted[self._own(field)] = value
        if self.model is RecurringExecution:
            wanted |= {"task_key": self.recurring, "job__isnull": False}
        elif self.recurring:
            execution = f"{self._prefix}recurring_execution"
            wanted |= {f"{execution}__task_key": self.recurring, f"{execution}__backend_alias": self.config.alias}
        if self.state == "finished":
            wanted[f"{self._prefix}finished_at__isnull"] = False
        if self.exception:
            failed = "" if self.model is FailedExecution else f"{self._prefix}failed_execution__"
            wanted[f"{failed}exception_class"] = self.exception
        using = self.config.database_alias
        if self.jobs is not None:
            wanted[f"{self._job}__in"] = self.jobs.using(using)
        if self.failures is not None and self.model is FailedExecution:
            wanted["pk__in"] = self.failures.using(using)
        return self._in_queue & Q(**wanted)

    # ---- text ---------------------------------------------------------------------------------------

    @cached_property
    def _hits(self) -> _Hits:
        return self._containing(self._rows.order_by(*self._order), MATCHES)

    def _containing(self, rows: QuerySet[Any], limit: int) -> _Hits:
        """The first jobs in which the text can be seen, up to a limit.

        What is hidden is not found; nor may a count, or that there are more, tell of it. So each job that has the
        text is looked at, and those in which it cannot be seen leave no trace.
        """
        path = f"{self._prefix}task_path"
        where = Q(**{f"{path}__icontains": self.text})
        fields = [path]
        if self.contents:
            # Longer arguments are not searched: they would be loaded whole, and parsed.
            rows = shown.as_text(rows, shown.LONGEST_IN_LIST, payload_text=f"{self._prefix}payload")
            for needle in _as_json(self.text):
                where |= Q(payload_text__icontains=needle)
            fields.append("payload_text")
            if self.model is FailedExecution:
                where |= Q(exception_class__icontains=self.text) | Q(message__icontains=self.text)
                fields += ["exception_class", "message"]
        having = list(rows.filter(where).values_list(self._job, flat=True)[:WINDOW])
        found: list[Any] = []
        for start in range(0, len(having), _LOADED):
            # Not all at once: their arguments may be long.
            some = having[start : start + _LOADED]
            loaded = rows.order_by().filter(**{f"{self._job}__in": some}).values_list(self._job, *fields)
            seen = {job_id for job_id, *values in loaded.iterator(_LOADED_AT_ONCE) if self._is_seen(*values)}
            found += [job_id for job_id in some if job_id in seen]
            if len(found) > limit:
                return _Hits(found[:limit], more=True)
        return _Hits(found)

    def _is_seen(self, task_path: str, payload: str = "null", *messages: str) -> bool:
        wanted = self.text.lower()
        if wanted in task_path.lower() or not self.contents:
            return wanted in task_path.lower()
        call = shown.parse(payload, shown.LONGEST_IN_LIST)
        if isinstance(call, shown.Unreadable):
            return False
        rules = redaction()
        secrets = rules.secrets(task_path, call)
        if any(wanted in secrets.hide(message).lower() for message in messages):
            return True
        arguments = rules.call(task_path, call, secrets=secrets)
        texts = [json.dumps([[name, value] for name, value, _ in arguments], ensure_ascii=False)]
        return any(needle.lower() in text.lower() for text in texts for needle in _as_json(self.text))


def _between(field: str, first: Any, end: Any) -> Q:
    bounds = {f"{field}__gte": first, f"{field}__lt": end}
    return Q(**{name: bound for name, bound in bounds.items() if bound is not None})


def _as_json(text: str) -> Iterable[str]:
    """How text stands in stored JSON: databases keep other characters as they are, or escaped."""
    return {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
