"""What happened over time, read from the jobs that are still stored, within a bounded cost.

Ids sort by time, so a span of time is a span of the primary key. Each span's jobs are counted up to
`CAP`, and up to `SAMPLE` of them are read from its start and as many from two places within; what they did is
taken for what all of the span's jobs did. A span of at most `SAMPLE` jobs is exact; everything else is an estimate, but
for what finished: where all spans together have no more than `READ` jobs, each of them is asked when it did.
At most five statements, however many jobs there are; deleted jobs are in none of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, history
from dj_queue.dialects.history import Extent, SampledJob, Span
from dj_queue.identifiers import earliest_at, time_of
from dj_queue.operations import transactions

CAP = 1000
SAMPLE = 40
RECOUNTED = 100_000
READ = 20_000
FAILURES_CAP = 500
# As long again before what is shown, in this number of spans: jobs that waited, or ran, into it.
_EARLIER = 12


@dataclass(frozen=True, slots=True)
class Range:
    """How far back, and in what steps."""

    name: str
    label: str
    step: timedelta
    steps: int


RANGES = (
    Range("1h", "1 hour", timedelta(minutes=1), 60),
    Range("6h", "6 hours", timedelta(minutes=5), 72),
    Range("24h", "24 hours", timedelta(minutes=20), 72),
    Range("7d", "7 days", timedelta(hours=2), 84),
)


@dataclass(frozen=True, slots=True)
class Step:
    start: datetime
    end: datetime
    enqueued: int
    finished: int
    failed: int  # and not retried or discarded since
    waiting: int  # at its end: to be started, whether a worker, a slot or a retry is missing
    median_wait: float | None  # seconds, of the jobs that started in it
    longest_wait: float | None  # that only one job in twenty exceeded


@dataclass(frozen=True, slots=True)
class History:
    range: Range
    steps: tuple[Step, ...]
    since: datetime  # jobs that were enqueued before are in no number
    estimated: bool
    finished_estimated: bool
    failures_capped: bool  # in some step the number of failures is a lower bound


class _Weighted(NamedTuple):
    """A job that was read, and how many it stands for."""

    job: SampledJob
    weight: float


def history_of(config: BackendConfig, within: Range, *, queue_name: str | None = None) -> History:
    """What happened in a range of time up to now, to a backend's jobs or to those of one queue."""

    def read(dialect: Dialect, cursor: CursorWrapper) -> History:
        now = dialect.now(cursor)
        now = timezone.make_aware(now) if timezone.is_naive(now) else now
        edges = _edges(now, within)
        earlier = _earlier(edges[0], within)
        queue = (config.alias, queue_name) if queue_name is not None else None
        spans = [Span(earliest_at(start), earliest_at(end)) for start, end in pairwise([*earlier, *edges[1:]])]
        extents = history.extents(cursor, spans, cap=CAP, queue=queue, lateral=dialect.lateral)
        parts = _parts(spans, extents)
        sampled = history.sample(
            cursor, [span for _, span in parts], limit=SAMPLE, queue=queue, lateral=dialect.lateral
        )
        failures = history.failures(
            cursor,
            list(pairwise(edges)),
            cap=FAILURES_CAP,
            alias=config.alias,
            queue_name=queue_name,
            lateral=dialect.lateral,
        )
        recounted = _recount(dialect, cursor, spans, extents, queue)
        numbers = [recounted.get(n, number) for n, number in enumerate(_estimate(spans, extents, parts, sampled))]
        ours = [each for each in _weigh(numbers, parts, sampled) if each.job.backend_alias == config.alias]
        steps = tuple(_steps(edges, now, ours, failures))
        estimated = any(extent.jobs > SAMPLE for extent in extents)
        known = all(extent.jobs < CAP or n in recounted for n, extent in enumerate(extents))
        readable = estimated and known and sum(numbers) <= READ
        if readable:
            whole = Span(spans[0].first, spans[-1].end)
            ended = history.finishes(
                cursor, whole, limit=READ + 1, alias=config.alias, queue_name=queue_name, lateral=dialect.lateral
            )
            steps = _with_finished(steps, edges, ended)
        return History(
            range=within,
            steps=steps,
            since=earlier[0],
            estimated=estimated,
            finished_estimated=estimated and not readable,
            failures_capped=any(each.looked_at >= FAILURES_CAP for each in failures),
        )

    return transactions.observe(config.database_alias, read)


# ---- spans of time ----------------------------------------------------------------------------------


def _edges(now: datetime, within: Range) -> list[datetime]:
    """The edges of the steps, the last of which is under way; the same ones however often one looks."""
    step = within.step.total_seconds()
    last = (now.timestamp() // step + 1) * step
    return [datetime.fromtimestamp(last - step * n, UTC) for n in range(within.steps, -1, -1)]


def _earlier(first: datetime, within: Range) -> list[datetime]:
    width = within.step * within.steps / _EARLIER
    return [first - width * n for n in range(_EARLIER, -1, -1)]


def _parts(spans: Sequence[Span], extents: Sequence[Extent]) -> list[tuple[int, Span]]:
    """Where to read jobs: from the start of every span, and from within those that have too many."""
    parts = []
    for n, (span, extent) in enumerate(zip(spans, extents, strict=True)):
        if extent.jobs <= SAMPLE:
            parts.append((n, span))
            continue
        start, end = time_of(span.first), time_of(span.end)
        if extent.from_start is not None and extent.from_end is not None and extent.from_start < extent.from_end:
            start, end = time_of(extent.from_start), time_of(extent.from_end)
        inner = [earliest_at(start + (end - start) * share) for share in _INNER]
        parts += [(n, Span(*ids)) for ids in pairwise([span.first, *inner, span.end])]
    return parts


# ---- how many ---------------------------------------------------------------------------------------


# Two places within a span, none of which recurs: work that comes every so often is not met each time.
_INNER = (0.382, 0.764)


def _estimate(
    spans: Sequence[Span],
    extents: Sequence[Extent],
    parts: Sequence[tuple[int, Span]],
    sampled: Sequence[SampledJob],
) -> list[float]:
    """How many jobs each span has: counted, or where the cap ended that, reckoned from their density.

    Between the first and the last `CAP` jobs, the density is the lower of those found at two places, the
    time before the first job there included: jobs that came in bursts are counted too low, never
    absurdly high.
    """
    last: dict[int, list[datetime]] = {}
    for job in sampled:
        last.setdefault(job.span, []).append(time_of(job.id))
    densities: dict[int, list[float]] = {}
    for place, (n, part) in enumerate(parts):
        if part.first != spans[n].first:
            densities.setdefault(n, []).append(_density(time_of(part.first), last.get(place, ())))
    numbers = []
    for n, extent in enumerate(extents):
        number = float(extent.jobs)
        if extent.jobs >= CAP and extent.from_start is not None and extent.from_end is not None:
            between = (time_of(extent.from_end) - time_of(extent.from_start)).total_seconds()
            if between > 0:
                number = 2 * CAP + between * min(densities[n])
            else:
                # What was counted from either end overlaps: in as large a share of the jobs as of the time.
                whole = (time_of(spans[n].end) - time_of(spans[n].first)).total_seconds()
                number = 2 * CAP / (1 - between / whole)
        numbers.append(number)
    return numbers


def _recount(
    dialect: Dialect,
    cursor: CursorWrapper,
    spans: Sequence[Span],
    extents: Sequence[Extent],
    queue: tuple[str, str] | None,
) -> dict[int, int]:
    """Count on, where only a few spans reached the cap: as far as the budget goes if it is shared."""
    full = [n for n, extent in enumerate(extents) if extent.jobs >= CAP]
    share = RECOUNTED // len(full) if full else 0
    if share <= 2 * CAP:
        return {}
    counts = history.counts(cursor, [spans[n] for n in full], cap=share, queue=queue, lateral=dialect.lateral)
    return {n: count for n, count in zip(full, counts, strict=True) if count < share}


def _density(start: datetime, times: Sequence[datetime]) -> float:
    """Jobs a second, of a sample that begins at a time; none where the sample had room for more."""
    if len(times) < SAMPLE:
        return 0.0
    return len(times) / max((max(times) - start).total_seconds(), 1e-5)


def _weigh(
    numbers: Sequence[float], parts: Sequence[tuple[int, Span]], sampled: Sequence[SampledJob]
) -> list[_Weighted]:
    read = [0] * len(numbers)
    for job in sampled:
        read[parts[job.span][0]] += 1
    return [_Weighted(job, numbers[n] / read[n]) for job in sampled for n in [parts[job.span][0]]]


# ---- what they did ----------------------------------------------------------------------------------


def _steps(
    edges: Sequence[datetime], now: datetime, jobs: Iterable[_Weighted], failures: Sequence[history.Failures]
) -> Iterable[Step]:
    count = len(edges) - 1
    enqueued, finished = [0.0] * count, [0.0] * count
    # Waiting at the end of a step: how many more, or fewer, than at the end of the one before.
    change = [0.0] * (count + 1)
    waits: list[list[tuple[float, float]]] = [[] for _ in range(count)]
    ends = [*edges[1:-1], now]

    def step_of(time: datetime) -> int | None:
        n = bisect_right(edges, time) - 1
        return n if 0 <= n < count else None

    for job, weight in jobs:
        ready_at = max(job.created_at, job.scheduled_at) if job.scheduled_at else job.created_at
        started_at = job.started_at or job.claimed_at or job.failed_at or job.finished_at
        if (n := step_of(job.created_at)) is not None:
            enqueued[n] += weight
        if job.finished_at and (n := step_of(job.finished_at)) is not None:
            finished[n] += weight
        began = job.started_at or job.claimed_at
        if began and (n := step_of(began)) is not None:
            waits[n].append((max(0.0, (began - ready_at).total_seconds()), weight))
        # The first end of a step at which it waits, and the first at which it no longer does.
        change[bisect_left(ends, ready_at)] += weight
        if started_at:
            change[bisect_left(ends, max(started_at, ready_at))] -= weight
    waiting = 0.0
    for n in range(count):
        waiting += change[n]
        yield Step(
            start=edges[n],
            end=edges[n + 1],
            enqueued=round(enqueued[n]),
            finished=round(finished[n]),
            failed=failures[n].ours,
            waiting=max(0, round(waiting)),
            median_wait=_percentile(waits[n], 0.5),
            longest_wait=_percentile(waits[n], 0.95),
        )


def _with_finished(steps: Sequence[Step], edges: Sequence[datetime], ended: Iterable[datetime]) -> tuple[Step, ...]:
    """The steps with what finished in each, counted."""
    counts = Counter(bisect_right(edges, time) - 1 for time in ended)
    return tuple(replace(step, finished=counts[n]) for n, step in enumerate(steps))


def _percentile(weighted: list[tuple[float, float]], share: float) -> float | None:
    if not weighted:
        return None
    weighted.sort()
    left = share * sum(weight for _, weight in weighted)
    for value, weight in weighted:
        left -= weight
        if left <= 0:
            return value
    return weighted[-1][0]
