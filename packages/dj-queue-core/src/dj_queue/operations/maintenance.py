"""Upkeep of concurrency limits: what should never be needed, and heals whatever went wrong.

A semaphore's free slots are its limit less the ready and claimed jobs that hold its key. That is
counted anew here, under the semaphore's lock, so that a slot lost anywhere is free again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db.backends.utils import CursorWrapper
from django.db.models import Count, Exists, OuterRef, QuerySet

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect
from dj_queue.models import BlockedExecution, ClaimedExecution, Job, ReadyExecution, Semaphore
from dj_queue.operations import transactions

_BATCH = 200


def maintain(config: BackendConfig) -> Iterator[int]:
    """Recount every semaphore, drop those that nobody needs, start what has room; yield how many jobs started.

    Some keys at a time, each in a transaction: there may be other things to do in between.
    """
    for keys in _batches(config):
        unblocked = transactions.run(config.database_alias, partial(_recount, config, keys))
        for job_id, key in unblocked:
            events.emit("job.unblocked", job_id=job_id, concurrency_key=key)
        yield len(unblocked)


def _batches(config: BackendConfig) -> Iterator[list[str]]:
    """The keys that have a semaphore, and then those of blocked jobs that have none."""
    using = config.database_alias
    yield from _walk(Semaphore.objects.using(using), "key")
    present = Exists(Semaphore.objects.filter(key=OuterRef("concurrency_key")))
    yield from _walk(BlockedExecution.objects.using(using).exclude(present), "concurrency_key")


def _walk(rows: QuerySet[Any], name: str) -> Iterator[list[str]]:
    # In the order of the database: it may have another one than Python.
    keys = rows.order_by(name).values_list(name, flat=True).distinct()
    batch = list(keys[:_BATCH])
    while batch:
        yield batch
        batch = list(keys.filter(**{f"{name}__gt": batch[-1]})[:_BATCH])


def _recount(
    config: BackendConfig, keys: Sequence[str], dialect: Dialect, cursor: CursorWrapper
) -> list[tuple[str, str]]:
    using = config.database_alias
    now = dialect.now(cursor)
    _create_missing(config, keys, now)
    rows = list(Semaphore.objects.using(using).filter(key__in=keys).order_by("key").select_for_update())
    held = _holders(config, keys)
    blocked = BlockedExecution.objects.using(using).filter(concurrency_key__in=keys)
    waiting = set(blocked.values_list("concurrency_key", flat=True).distinct())
    unneeded = [row.pk for row in rows if row.expires_at <= now and not held[row.key] and row.key not in waiting]
    changed = []
    for row in rows:
        if row.value != row.limit - held[row.key]:
            row.value = row.limit - held[row.key]
            changed.append(row)
    Semaphore.objects.using(using).bulk_update(changed, ["value"])
    Semaphore.objects.using(using).filter(pk__in=unneeded).delete()
    unblocked = dialect.unblock(cursor, dict.fromkeys(waiting, 0), notify=config.listen_notify) if waiting else []
    BlockedExecution.objects.using(using).filter(concurrency_key__in=keys, expires_at__lte=now).update(
        expires_at=now + timedelta(seconds=config.default_concurrency_duration)
    )
    return [(str(job.job_id), job.key) for job in unblocked]


def _create_missing(config: BackendConfig, keys: Sequence[str], now: datetime) -> None:
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
    Semaphore.objects.using(using).bulk_create(
        [Semaphore(key=key, value=limits.get(key) or 1, limit=limits.get(key) or 1, expires_at=now) for key in missing],
        ignore_conflicts=True,
    )


def _holders(config: BackendConfig, keys: Sequence[str]) -> Counter[str]:
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
