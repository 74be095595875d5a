"""Upkeep of concurrency limits: what should never be needed, and heals whatever went wrong.

A semaphore's free slots are its limit less the ready and claimed jobs that hold its key. That is
counted anew here, under the semaphore's lock, so that a slot lost anywhere is free again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import DatabaseError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Count, Exists, OuterRef, QuerySet

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, UnblockedJob, dialect_for
from dj_queue.models import BlockedExecution, ClaimedExecution, Job, ReadyExecution, Semaphore
from dj_queue.operations import batches, obstacles, transactions

_BATCH = 50
# So often what others hold is tried again at the end.
_MORE_LOOKS = 3
_MOST_PROLONGED = 500


def maintain(config: BackendConfig) -> Iterator[int]:
    """Recount every semaphore, drop those that nobody needs, start what has room; yield how many jobs started.

    A few keys at a time, each few in a transaction: there may be other things to do in between. It waits for
    nobody: a semaphore that others hold has its turn at the end once more, and otherwise the next time. What the
    database refuses of some keys is raised once all others are done.
    """
    upkeep = _Upkeep(config)
    for keys in _batches(config):
        yield upkeep.recounted(keys)
    for _ in range(_MORE_LOOKS):
        again, upkeep.held = upkeep.held, []
        for start in range(0, len(again), _BATCH):
            yield upkeep.recounted(again[start : start + _BATCH])
    if upkeep.refusal is not None:
        raise upkeep.refusal


def repair(config: BackendConfig, key: str) -> int:
    """Recount one semaphore at once, and start what has room; return how many jobs started."""
    return _Upkeep(config).recounted([key])


class _Upkeep:
    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self.held: list[str] = []  # the keys of semaphores that others hold
        self.refusal: DatabaseError | None = None  # the first

    def recounted(self, keys: Sequence[str]) -> int:
        """Recount these semaphores; return how many jobs that started."""
        config = self._config
        try:
            unblocked, free = transactions.run(
                config.database_alias, partial(_recount, config, keys), waits_again=False
            )
        except DatabaseError as error:
            # On what cannot be skipped, the row of a key that another transaction has made and not committed.
            if dialect_for(config.database_alias).is_lock_timeout(error):
                unblocked, free = [], set()
            elif not batches.may_be_smaller(config.database_alias, error):
                raise
            elif len(keys) > 1:
                # What is refused of one key holds up no other.
                middle = len(keys) // 2
                return self.recounted(keys[:middle]) + self.recounted(keys[middle:])
            else:
                return self._recounted_without_some(keys[0], error)
        self.held += [key for key in keys if key not in free]
        for job_id, key in unblocked:
            events.emit("job.unblocked", job_id=job_id, concurrency_key=key)
        return len(unblocked)

    def _recounted_without_some(self, key: str, refusal: DatabaseError) -> int:
        """Start others that wait for a key whose next job the database refuses to make ready."""
        config = self._config
        try:
            if obstacles.can_be_treated(config, refusal) and obstacles.set_blocked_aside(config, key):
                return self.recounted([key])
        except DatabaseError as another:
            if dialect_for(config.database_alias).is_away(another):
                raise
        self.refusal = self.refusal or refusal
        return 0


def _batches(config: BackendConfig) -> Iterator[list[str]]:
    """The keys that have a semaphore, and then those of blocked jobs that have none."""
    using = config.database_alias
    yield from _walk(Semaphore.objects.using(using), "key")
    present = Exists(Semaphore.objects.filter(key=OuterRef("concurrency_key")))
    yield from _walk(BlockedExecution.objects.using(using).exclude(present), "concurrency_key")


def _walk(rows: QuerySet[Any], name: str) -> Iterator[list[str]]:
    # In the order of the database: it may have another one than Python.
    keys = rows.order_by(name).values_list(name, flat=True).distinct()
    batch: list[str] = transactions.read(rows.db, partial(list, keys[:_BATCH]))
    while batch:
        yield batch
        batch = transactions.read(rows.db, partial(list, keys.filter(**{f"{name}__gt": batch[-1]})[:_BATCH]))


def _recount(
    config: BackendConfig, wanted: Sequence[str], dialect: Dialect, cursor: CursorWrapper
) -> tuple[list[tuple[str, str]], set[str]]:
    """Return (job id, key) of the jobs that were started, and which semaphores were free to be recounted."""
    using = config.database_alias
    now = dialect.now(cursor)
    _create_missing(config, dialect, cursor, wanted, now)
    rows = [Semaphore(**row._asdict()) for row in dialect.lock_semaphores(cursor, wanted, skip_locked=True)]
    keys = {row.key for row in rows}
    if not keys:
        return [], keys
    held = _holders(config, keys)
    blocked = BlockedExecution.objects.using(using).filter(concurrency_key__in=keys)
    waiting = set(blocked.values_list("concurrency_key", flat=True).distinct())
    changed, unneeded = [], []
    for row in rows:
        if row.expires_at is None:  # it cannot be read: as if it were over, and else written anew
            row.expires_at = now
            changed.append(row)
        if row.expires_at <= now and not held[row.key] and row.key not in waiting:
            unneeded.append(row.pk)
        if row.value != row.limit - held[row.key]:
            row.value = row.limit - held[row.key]
            changed.append(row)
    Semaphore.objects.using(using).bulk_update(changed, ["value", "expires_at"])
    Semaphore.objects.using(using).filter(pk__in=unneeded).delete()
    unblocked: list[UnblockedJob] = []
    if waiting:
        notify = config.listen_notify
        unblocked = dialect.unblock(cursor, dict.fromkeys(waiting, 0), notify=notify, skip_locked=True)
        _prolong(config, keys, now)
    return [(str(job.job_id), job.key) for job in unblocked], keys


def _prolong(config: BackendConfig, keys: Iterable[str], now: datetime) -> None:
    """A job that waits longer than it was to goes on waiting."""
    rows = BlockedExecution.objects.using(config.database_alias)
    skip_locked = connections[config.database_alias].features.has_select_for_update_skip_locked
    expired = rows.filter(concurrency_key__in=keys, expires_at__lte=now).order_by("pk")
    pks = list(expired.select_for_update(skip_locked=skip_locked).values_list("pk", flat=True)[:_MOST_PROLONGED])
    if pks:
        expires_at = now + timedelta(seconds=config.default_concurrency_duration)
        rows.filter(pk__in=pks).update(expires_at=expires_at)


def _create_missing(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, keys: Sequence[str], now: datetime
) -> None:
    """Blocked jobs whose semaphore is gone would wait for ever: give them one, as their jobs say."""
    using = config.database_alias
    present = set(Semaphore.objects.using(using).filter(key__in=keys).values_list("key", flat=True))
    missing = [key for key in keys if key not in present]
    if not missing:
        return
    limits = dict(
        Job.objects.using(using)
        .filter(blocked_execution__concurrency_key__in=missing)
        .values_list("concurrency_key", "concurrency_limit")
    )
    dialect.make_semaphores(cursor, {key: limits.get(key) or 1 for key in missing}, now)


def _holders(config: BackendConfig, keys: Collection[str]) -> Counter[str]:
    using = config.database_alias
    ready = ReadyExecution.objects.using(using).filter(concurrency_key__in=keys)
    claimed = ClaimedExecution.objects.using(using).filter(job__concurrency_key__in=keys)
    # One statement, and so one snapshot: a job that is claimed or given back meanwhile is counted once.
    counts = ready.values_list("concurrency_key").annotate(Count("pk"))
    counts = counts.union(claimed.values_list("job__concurrency_key").annotate(Count("pk")), all=True)
    held: Counter[str] = Counter()
    for key, count in counts:
        held[key or ""] += count
    return held
