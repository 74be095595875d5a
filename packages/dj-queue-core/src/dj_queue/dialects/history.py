"""Reading spans of the jobs' primary key, and of the failures' index on alias and time: one text for every database.

Each span is a subselect of its own with a limit of its own, all in one statement: whatever the tables
hold, no more rows are read than the limits allow.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db.backends.utils import CursorWrapper
from django.utils import timezone
from django.utils.dateparse import parse_datetime


class Span(NamedTuple):
    """From an id on, up to but without another."""

    first: UUID
    end: UUID


class Extent(NamedTuple):
    """How many jobs a span has, up to a cap; where that is reached, the ids at which the cap ends from either side."""

    jobs: int
    from_start: UUID | None
    from_end: UUID | None


class SampledJob(NamedTuple):
    span: int
    id: UUID
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    last_attempted_at: datetime | None
    finished_at: datetime | None
    claimed_at: datetime | None
    failed_at: datetime | None
    backend_alias: str
    queue_name: str


class Failures(NamedTuple):
    """How many failed jobs a span of time has; `looked_at` counts those of the alias's other queues too."""

    ours: int
    looked_at: int


def extents(
    cursor: CursorWrapper, spans: Sequence[Span], *, cap: int, queue: tuple[str, str] | None, lateral: bool
) -> list[Extent]:
    """Count the jobs of each span, up to a cap, of one queue (alias, name) or of all."""
    params: list[Any] = []
    if lateral or queue is None:
        # Planned once for all spans.
        listed, ids = _listed([(n, *_ids(cursor, span)) for n, span in enumerate(spans)])
        among: list[str] = []
        if queue is None:
            one = _extent("span.n", "id >= span.first AND id < span.upto", queue, cap)
        else:
            one, among = _extent_of_queue(queue, cap)
        cursor.execute(f"{one} FROM ({listed}) AS span", [*among, *ids])
    else:
        condition, among = _condition(queue)
        for n, span in enumerate(spans):
            params += [n, *4 * [*among, *_ids(cursor, span)]]
        cursor.execute(" UNION ALL ".join([_extent("%s", condition, queue, cap)] * len(spans)), params)
    found = {
        n: Extent(cap if count is None else count, _uuid(start), _uuid(end))
        for n, count, start, end in cursor.fetchall()
    }
    return [found[n] for n in range(len(spans))]


def _extent(n: str, condition: str, queue: tuple[str, str] | None, cap: int) -> str:
    """The count, or nothing where that would exceed the cap; and the ids at the cap from either side."""
    rows = f"FROM dj_queue_jobs WHERE {condition}"
    from_start = f"(SELECT id {rows} ORDER BY {_order(queue)} LIMIT 1 OFFSET {cap - 1:d})"
    from_end = f"(SELECT id {rows} ORDER BY {_order(queue, 'DESC')} LIMIT 1 OFFSET {cap - 1:d})"
    counted = f"CASE WHEN {from_start} IS NULL THEN (SELECT count(*) {rows}) END"
    return f"SELECT {n} AS n, {counted} AS jobs, {from_start} AS from_start, {from_end} AS from_end"


def _extent_of_queue(queue: tuple[str, str], cap: int) -> tuple[str, list[str]]:
    """The same of a row of `span`, for one queue."""
    (first, among), (last, _), (some, _) = (
        _looked("id", queue, limit, direction)
        for limit, direction in ((f"1 OFFSET {cap - 1:d}", ""), (f"1 OFFSET {cap - 1:d}", "DESC"), (f"{cap:d}", ""))
    )
    from_start, from_end, counted = f"(SELECT id {first})", f"(SELECT id {last})", f"(SELECT count(*) {some})"
    jobs = f"CASE WHEN {from_start} IS NULL THEN {counted} END"
    return f"SELECT span.n AS n, {jobs} AS jobs, {from_start} AS from_start, {from_end} AS from_end", 4 * among


def counts(
    cursor: CursorWrapper, spans: Sequence[Span], *, cap: int, queue: tuple[str, str] | None, lateral: bool
) -> list[int]:
    """Count the jobs of each span, up to a cap."""
    params: list[Any] = []
    if lateral:
        looked, among = _looked("id", queue, f"{cap:d}")
        listed, ids = _listed([(n, *_ids(cursor, span)) for n, span in enumerate(spans)])
        cursor.execute(
            f"SELECT span.n, counted.jobs FROM ({listed}) AS span"
            f" CROSS JOIN LATERAL (SELECT count(*) AS jobs {looked}) AS counted",
            [*ids, *among],
        )
    else:
        condition, among = _condition(queue)
        one = (
            "SELECT %s AS span, count(*) AS jobs FROM"
            f" (SELECT 1 AS one FROM dj_queue_jobs WHERE {condition} LIMIT {cap:d}) AS counted"
        )
        for n, span in enumerate(spans):
            params += [n, *among, *_ids(cursor, span)]
        cursor.execute(" UNION ALL ".join([one] * len(spans)), params)
    found = dict(cursor.fetchall())
    return [found[n] for n in range(len(spans))]


def sample(
    cursor: CursorWrapper, spans: Sequence[Span], *, limit: int, queue: tuple[str, str] | None, lateral: bool
) -> list[SampledJob]:
    """Read the first jobs of each span, up to a limit."""
    params: list[Any] = []
    if lateral:
        looked, among = _looked(_SAMPLED, queue, f"{limit:d}")
        listed, ids = _listed([(n, *_ids(cursor, span)) for n, span in enumerate(spans)])
        params = [*ids, *among]
        sampled = (
            f"SELECT span.n AS span, job.* FROM ({listed}) AS span"
            f" CROSS JOIN LATERAL (SELECT {_SAMPLED} {looked}) AS job"
        )
    else:
        condition, among = _condition(queue)
        one = (
            f"SELECT * FROM (SELECT %s AS span, {_SAMPLED} FROM dj_queue_jobs WHERE {condition}"
            f" ORDER BY {_order(queue)} LIMIT {limit:d}) AS sampled"
        )
        for n, span in enumerate(spans):
            params += [n, *among, *_ids(cursor, span)]
        sampled = " UNION ALL ".join([one] * len(spans))
    cursor.execute(f"SELECT span, {_LOOKED_UP} FROM ({sampled}) AS job", params)
    zone = cursor.db.timezone or timezone.get_default_timezone()
    return [
        SampledJob(row[0], _uuid(row[1]), *(_time(value, zone) for value in row[2:9]), *row[9:])  # type: ignore[arg-type]
        for row in cursor.fetchall()
    ]


def finishes(
    cursor: CursorWrapper, span: Span, *, limit: int, alias: str, queue_name: str | None, lateral: bool
) -> list[datetime]:
    """When each finished job of an alias, or of one of its queues, ended: of the span's first jobs, up to a limit."""
    queue = None if queue_name is None else (alias, queue_name)
    if lateral:
        looked, among = _looked("finished_at, id, backend_alias", queue, f"{limit:d}")
        listed, ids = _listed([(0, *_ids(cursor, span))])
        read = f"SELECT finished_at, backend_alias {looked}"
        found = f"SELECT job.* FROM ({listed}) AS span CROSS JOIN LATERAL ({read}) AS job"
        params = [*ids, *among]
    else:
        condition, among = _condition(queue)
        found = (
            f"SELECT finished_at, backend_alias FROM dj_queue_jobs WHERE {condition}"
            f" ORDER BY {_order(queue)} LIMIT {limit:d}"
        )
        params = [*among, *_ids(cursor, span)]
    cursor.execute(
        f"SELECT finished_at FROM ({found}) AS ended WHERE finished_at IS NOT NULL AND backend_alias = %s",
        [*params, alias],
    )
    zone = cursor.db.timezone or timezone.get_default_timezone()
    return [time for (value,) in cursor.fetchall() if (time := _time(value, zone)) is not None]


def failures(
    cursor: CursorWrapper,
    times: Sequence[tuple[datetime, datetime]],
    *,
    cap: int,
    alias: str,
    queue_name: str | None,
    lateral: bool,
) -> list[Failures]:
    """Count the failed jobs of each span of time, looking at a limited number."""
    ours, among = ("1 = 1", []) if queue_name is None else ("queue_name = %s", [queue_name])
    stored = [(n, _stored(cursor, start), _stored(cursor, end)) for n, (start, end) in enumerate(times)]
    counts = f"count(CASE WHEN {ours} THEN 1 END) AS ours, count(*) AS looked_at"
    # The alias comes first in the index: without it, each span would read all failures there are.
    looked = "SELECT queue_name FROM dj_queue_failed_executions WHERE backend_alias = %s AND created_at"
    if lateral:
        listed, params = _listed(stored)
        cursor.execute(
            f"SELECT span.n, found.ours, found.looked_at FROM ({listed}) AS span CROSS JOIN LATERAL (SELECT {counts}"
            f" FROM ({looked} >= span.first AND created_at < span.upto ORDER BY created_at LIMIT {cap:d}) AS looked"
            ") AS found",
            [*params, *among, alias],
        )
    else:
        one = f"SELECT %s AS span, {counts} FROM ({looked} >= %s AND created_at < %s LIMIT {cap:d}) AS looked"
        params = [value for n, start, end in stored for value in (n, *among, alias, start, end)]
        cursor.execute(" UNION ALL ".join([one] * len(times)), params)
    found = {n: Failures(mine, looked_at) for n, mine, looked_at in cursor.fetchall()}
    return [found[n] for n in range(len(times))]


_SAMPLED = "id, created_at, scheduled_at, started_at, last_attempted_at, finished_at, backend_alias, queue_name"
# Only what has not finished is looked up in other tables, each by its unique index.
_LOOKED_UP = (
    "id, created_at, scheduled_at, started_at, last_attempted_at, finished_at,"
    " CASE WHEN finished_at IS NULL THEN (SELECT claim.created_at FROM dj_queue_claimed_executions claim"
    " WHERE claim.job_id = job.id) END,"
    " CASE WHEN finished_at IS NULL THEN (SELECT failed.created_at FROM dj_queue_failed_executions failed"
    " WHERE failed.job_id = job.id) END,"
    " backend_alias, queue_name"
)


def _condition(queue: tuple[str, str] | None) -> tuple[str, list[str]]:
    if queue is None:
        return "id >= %s AND id < %s", []
    return "backend_alias = %s AND queue_name = %s AND id >= %s AND id < %s", list(queue)


def _looked(columns: str, queue: tuple[str, str] | None, limit: str, direction: str = "") -> tuple[str, list[str]]:
    """The first or last jobs of a row of `span`, of one queue or of all."""
    if queue is None:
        within = "WHERE id >= span.first AND id < span.upto"
        order = f"ORDER BY {_order(queue, direction)} LIMIT {limit}"
        return f"FROM (SELECT {columns} FROM dj_queue_jobs {within} {order}) AS looked", []
    # As one value: a bound on the id alone would let a planner read every queue's jobs by the primary key. And only
    # the bound where the scan begins: before PostgreSQL 17, a row's other bound ends none. The limit does that.
    bound = "< (%s, %s, span.upto)" if direction else ">= (%s, %s, span.first)"
    named = (
        columns if "queue_name" in columns else f"{columns.removesuffix(', backend_alias')}, backend_alias, queue_name"
    )
    return (
        f"FROM (SELECT {named} FROM dj_queue_jobs WHERE (backend_alias, queue_name, id) {bound}"
        f" ORDER BY {_order(queue, direction)} LIMIT {limit}) AS looked"
        " WHERE backend_alias = %s AND queue_name = %s AND id >= span.first AND id < span.upto"
    ), [*queue, *queue]


def _listed(spans: Sequence[tuple[int, Any, Any]]) -> tuple[str, list[Any]]:
    """Spans as rows (n, first, upto) of a table."""
    one = "SELECT %s AS n, %s AS first, %s AS upto"
    return " UNION ALL ".join([one] * len(spans)), [value for span in spans for value in span]


def _order(queue: tuple[str, str] | None, direction: str = "") -> str:
    # All columns of the index: so that no planner prefers the primary key, and filters a million rows there.
    columns = ("id",) if queue is None else ("backend_alias", "queue_name", "id")
    return ", ".join(f"{column} {direction}".rstrip() for column in columns)


def _ids(cursor: CursorWrapper, span: Span) -> Iterable[Any]:
    native = cursor.db.features.has_native_uuid_field
    return span if native else (span.first.hex, span.end.hex)


def _uuid(value: Any) -> UUID | None:
    return value if value is None or isinstance(value, UUID) else UUID(value)


def _stored(cursor: CursorWrapper, time: datetime) -> Any:
    if not settings.USE_TZ:
        time = timezone.make_naive(time)
    return cursor.db.ops.adapt_datetimefield_value(time)


def _time(value: Any, zone: Any) -> datetime | None:
    """A time with its zone: some drivers know nothing of zones, and one only of text."""
    if value is None:
        return None
    time = parse_datetime(value) if isinstance(value, str) else value
    assert isinstance(time, datetime)
    return timezone.make_aware(time, zone) if timezone.is_naive(time) else time
