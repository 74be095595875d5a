"""Concurrency limits: how many jobs of one key may be ready or running at once.

A semaphore row holds the free slots of a key. Everything that takes or frees a slot first locks the
row, many keys in the one order of `Dialect.lock_semaphores`, so that two transactions never wait for each
other.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

from django.db import transaction
from django.db.backends.utils import CursorWrapper

from dj_queue import events, key_format
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, UnblockedJob
from dj_queue.dialects.base import lasting
from dj_queue.exceptions import ArgumentsError, EnqueueError
from dj_queue.models import BlockedExecution, Job, ReadyExecution, Semaphore
from dj_queue.operations import transactions
from dj_queue.serialization import describe, storable
from dj_queue.types import AnyTask

# What `dispatch` reads of a job.
DECIDING = (
    "queue_name", "priority", "backend_alias",
    "concurrency_key", "concurrency_limit", "concurrency_duration", "on_conflict",
)  # fmt: skip

BLOCK = "block"
DISCARD = "discard"

_LONGEST_KEY = 255
_ATTEMPTS = 10
# Seconds after which what others held is tried again: at first, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
_HIGHEST_LIMIT = 2**31 - 1  # what its column holds
_LONGEST_DURATION = 100 * 365 * 86400  # within the calendar, and more than anybody means


class Limit(NamedTuple):
    key: str
    limit: int
    duration: float  # seconds until a slot that was never given back counts as free
    on_conflict: str

    @property
    def discards(self) -> bool:
        return self.on_conflict == DISCARD


def limit_of(task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any], *, default_duration: float) -> Limit | None:
    """Return the limit that a call falls under, if its task has any. Raises `EnqueueError`."""
    key = _option(task, "concurrency_key")
    if key is None:
        return None
    path = task.module_path
    limit = _option(task, "concurrency_limit")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _HIGHEST_LIMIT:
        raise EnqueueError(
            f"{path} has a concurrency_key, and its concurrency_limit must be a whole number of 1 to"
            f" {_HIGHEST_LIMIT}, got {limit!r}. Set it beside the key."
        )
    duration = _option(task, "concurrency_duration")
    duration = default_duration if duration is None else duration
    if isinstance(duration, timedelta):
        duration = duration.total_seconds()
    if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 < duration <= _LONGEST_DURATION:
        raise EnqueueError(
            f"{path}: concurrency_duration must be a positive number of seconds, at most 100 years, got {duration!r}."
            " Set it beside the key."
        )
    on_conflict = _option(task, "on_conflict")
    on_conflict = BLOCK if on_conflict is None else on_conflict
    if on_conflict not in (BLOCK, DISCARD):
        raise EnqueueError(
            f"{path}: on_conflict must be 'block' or 'discard', got {on_conflict!r}. Set it beside the key."
        )
    return Limit(_resolve(task, key, args, kwargs), limit, float(duration), on_conflict)


def dispatch(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, jobs: Sequence[Job], now: datetime
) -> None:
    """Bring jobs that are in no state to ready, blocked or finished, as their limits allow.

    Called in the transaction that took them out of their last state, in the order in which the jobs
    are to start. Jobs without a key become ready.
    """
    slots = _acquire(config, dialect, cursor, [job for job in jobs if job.concurrency_key], now)
    ready: list[ReadyExecution] = []
    blocked: list[BlockedExecution] = []
    discarded: list[Job] = []
    for job in jobs:
        key = job.concurrency_key
        place: dict[str, Any] = {
            "job": job,
            "backend_alias": job.backend_alias,
            "queue_name": job.queue_name,
            "priority": job.priority,
            "created_at": now,
        }
        if not key or slots[key] > 0:
            if key:
                slots[key] -= 1
            ready.append(ReadyExecution(**place, concurrency_key=key))
        elif job.on_conflict == DISCARD:
            job.finished_at = now
            job.updated_at = now  # pyright: ignore[reportAttributeAccessIssue]
            discarded.append(job)
        else:
            expires_at = now + timedelta(seconds=_duration(config, job))
            blocked.append(BlockedExecution(**place, concurrency_key=key, expires_at=expires_at))
    using = config.database_alias
    ReadyExecution.objects.using(using).bulk_create(ready)
    BlockedExecution.objects.using(using).bulk_create(blocked)
    Job.objects.using(using).bulk_update(discarded, ["finished_at", "updated_at"], batch_size=500)
    if ready and config.listen_notify:
        dialect.notify(cursor, config.alias)


def release(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, keys: Iterable[str | None]
) -> list[tuple[str, str]]:
    """Free one slot for each key given, and start the next blocked jobs; return (job id, key) of those."""
    freed = Counter(key for key in keys if key is not None)
    if not freed:
        return []
    unblocked = dialect.unblock(cursor, freed, notify=config.listen_notify)
    return [(str(job.job_id), job.key) for job in unblocked]


class HeldKeys:
    """Keys whose semaphores others hold for long, and when each is to be tried again."""

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._again: dict[str, _Held] = {}

    def now(self) -> set[str]:
        """The keys that are not to be tried yet. Where the time of one has come, it is looked at without waiting."""
        now = time.monotonic()
        # One that was free when its time came, or was not asked for, begins anew.
        self._again = {key: held for key, held in self._again.items() if held.until + 2 * _LONGEST_PAUSE > now}
        due = {key for key, held in self._again.items() if held.until <= now and not held.seen_free}
        if due:
            self.add(transactions.run(self._config.database_alias, partial(find_held, self._config, due)))
            self._again |= {
                key: self._again[key]._replace(seen_free=True) for key in due if self._again[key].until <= now
            }
        return {key for key, held in self._again.items() if held.until > now}

    def add(self, keys: Iterable[str]) -> None:
        for key in keys:
            last = self._again[key].pause if key in self._again else _FIRST_PAUSE / 2
            pause = min(2 * last, _LONGEST_PAUSE)
            self._again[key] = _Held(time.monotonic() + pause, pause, seen_free=False)


class _Held(NamedTuple):
    until: float  # on the monotonic clock
    pause: float
    seen_free: bool


def find_held(config: BackendConfig, keys: Iterable[str], dialect: Dialect, cursor: CursorWrapper) -> set[str]:
    """Which of these keys have a semaphore that another transaction holds."""
    wanted = sorted(keys)
    free = {row.key for row in dialect.lock_semaphores(cursor, wanted, skip_locked=True)}
    rows = Semaphore.objects.using(config.database_alias).filter(key__in=[key for key in wanted if key not in free])
    return set(rows.values_list("key", flat=True))


def tell_unblocked(config: BackendConfig, unblocked: Sequence[UnblockedJob]) -> None:
    """Tell of jobs that a raised limit has started, once that is committed."""

    def tell() -> None:
        for job in unblocked:
            events.emit("job.unblocked", job_id=str(job.job_id), concurrency_key=job.key)

    if unblocked:
        transaction.on_commit(tell, using=config.database_alias)


# ---- the limit of a call ----------------------------------------------------------------------------


def _option(task: AnyTask, name: str) -> Any:
    value = getattr(task, name, None)
    return getattr(task.func, name, None) if value is None else value


def _resolve(
    task: AnyTask,
    key: str | Callable[..., str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> str:
    path = task.module_path
    arguments = _bind(task, args, kwargs)
    try:
        resolved = key(*args, **kwargs) if callable(key) else key_format.resolve(key, arguments)
    except Exception as error:
        known = ", ".join(islice(arguments, 20)) or "none"
        raise ArgumentsError(
            f"{path}: concurrency_key {_short(repr(key))} cannot be resolved from the arguments ({_short(known)}):"
            f" {type(error).__name__}: {_short(describe(error).message)}. Name only parameters of the task."
        ) from error
    if not isinstance(resolved, str) or not 0 < len(resolved) <= _LONGEST_KEY:
        shown = _short(repr(resolved[:80] if isinstance(resolved, str) else resolved), 80)
        raise EnqueueError(
            f"{path}: concurrency_key must resolve to text of 1 to {_LONGEST_KEY} characters, got {shown}. Make it"
            " of ids."
        )
    if storable(resolved) != resolved:
        raise EnqueueError(
            f"{path}: concurrency_key must resolve to text without NUL and lone surrogates. Make it of ids."
        )
    return resolved


def _short(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _bind(task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    context = (None,) if task.takes_context else ()
    signature = _signature(task.func)
    try:
        bound = signature.bind(*context, *args, **kwargs)
    except TypeError as error:
        raise ArgumentsError(
            f"{task.module_path} cannot be enqueued with these arguments: {_short(str(error))}. Call it with those that"
            " its function takes."
        ) from error
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    if task.takes_context:
        arguments.pop("context", None)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


@lru_cache(maxsize=1024)
def _signature(func: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(func)


# ---- slots ------------------------------------------------------------------------------------------


def _acquire(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, jobs: Sequence[Job], now: datetime
) -> Counter[str]:
    """Take as many slots as there are, at most one a job; return how many of each key."""
    if not jobs:
        return Counter()
    wanted = Counter(job.concurrency_key or "" for job in jobs)
    latest = {job.concurrency_key or "": job for job in jobs}
    taken: Counter[str] = Counter()
    changed = []
    for row in _raised(config, dialect, cursor, list(_locked(dialect, cursor, latest, now)), latest):
        job = latest[row.key]
        limit = _limit(job)
        row.value += limit - row.limit
        row.limit = limit
        taken[row.key] = min(wanted[row.key], max(row.value, 0))
        row.value -= taken[row.key]
        row.updated_at = now  # pyright: ignore[reportAttributeAccessIssue]
        if taken[row.key] or row.expires_at is None:  # which cannot be read
            row.expires_at = now + timedelta(seconds=_duration(config, job))
        changed.append(row)
    rows = Semaphore.objects.using(config.database_alias)
    rows.bulk_update(changed, ["value", "limit", "expires_at", "updated_at"], batch_size=200)
    return taken


def _raised(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, rows: list[Semaphore], latest: Mapping[str, Job]
) -> list[Semaphore]:
    """The locked semaphores, once those that a lower limit has blocked have what a raised one gives them."""
    raised = [row for row in rows if _limit(latest[row.key]) > row.limit]
    if not raised:
        return rows
    for row in raised:
        row.value += _limit(latest[row.key]) - row.limit
        row.limit = _limit(latest[row.key])
    Semaphore.objects.using(config.database_alias).bulk_update(raised, ["value", "limit"], batch_size=200)
    unblocked = dialect.unblock(cursor, {row.key: 0 for row in raised}, notify=config.listen_notify)
    tell_unblocked(config, unblocked)
    return [Semaphore(**row._asdict()) for row in dialect.lock_semaphores(cursor, latest)]


def _locked(dialect: Dialect, cursor: CursorWrapper, latest: Mapping[str, Job], now: datetime) -> Iterator[Semaphore]:
    """The semaphores of these keys, created where there are none, and locked."""
    keys = set(latest)
    for attempt in range(_ATTEMPTS):
        if attempt or not dialect.locks_before_insert:
            dialect.make_semaphores(cursor, {key: _limit(latest[key]) for key in keys}, now)
        found = dialect.lock_semaphores(cursor, keys)
        yield from (Semaphore(**row._asdict()) for row in found)
        # Upkeep may have deleted a row after it stood in the way of ours, and before it was locked.
        keys -= {row.key for row in found}
        if not keys:
            return


def _limit(job: Job) -> int:
    return job.concurrency_limit or 1


def _duration(config: BackendConfig, job: Job) -> float:
    return lasting(job.concurrency_duration).total_seconds() or config.default_concurrency_duration
