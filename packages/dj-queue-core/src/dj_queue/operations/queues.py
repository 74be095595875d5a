"""Queues as operators see them: size, latency, pause, resume, clear."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.db.models import QuerySet
from django.db.models.functions import Coalesce

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, dialect_for
from dj_queue.models import MAX_QUEUE_NAME, Pause, ReadyExecution
from dj_queue.operations import readable, transactions
from dj_queue.serialization import is_storable

_BATCH = 500


def size(config: BackendConfig, queue_name: str) -> int:
    """Return the number of ready jobs."""
    return _ready(config, queue_name).count()


def latency(config: BackendConfig, queue_name: str) -> float:
    """Return for how many seconds the longest waiting ready job has been ready; 0.0 if there is none."""
    # The oldest of each priority is the first of it in an index; the oldest of all would be found by reading all.
    rows = _ready(config, queue_name).order_by("-priority", "id")
    rows_since = rows.values_list("priority", Coalesce("latency_started_at", "created_at"))
    oldest = []
    try:
        found = rows_since.first()
        while found is not None:
            oldest.append(found[1])
            found = rows_since.filter(priority__lt=found[0]).first()
    except Exception as error:
        if dialect_for(config.database_alias).is_unanswered(error):
            raise
        oldest = [since for _, since in readable.read(rows_since[:_BATCH]).rows]
    oldest = [since for since in oldest if since]
    if not oldest:
        return 0.0

    now = transactions.run(config.database_alias, lambda dialect, cursor: dialect.now(cursor), one_statement=True)
    waited: float = (now - min(oldest)).total_seconds()
    return max(0.0, waited)


def is_paused(config: BackendConfig, queue_name: str) -> bool:
    return _pauses(config, queue_name).exists()


def pause(config: BackendConfig, queue_name: str) -> None:
    """Stop claims from the queue; nothing else changes. Pausing twice is pausing once.

    Raises `ValueError` for a name that no queue can have.
    """
    if not is_storable(queue_name) or not 0 < len(queue_name) <= MAX_QUEUE_NAME:
        raise ValueError(
            f"expected a queue name of 1 to {MAX_QUEUE_NAME} characters, got {ascii(queue_name)[:80]}. Name one queue"
            " exactly: a pause takes no selector."
        )
    if is_paused(config, queue_name):
        return
    # Another that pauses or resumes it just now: no error, and one row.
    now = dialect_for(config.database_alias).clock()
    row = Pause(backend_alias=config.alias, queue_name=queue_name, created_at=now)
    pauses = Pause.objects.using(config.database_alias)
    transactions.run(
        config.database_alias, lambda *_: pauses.bulk_create([row], ignore_conflicts=True), one_statement=True
    )
    events.emit("queue.paused", queue_name=queue_name)


def resume(config: BackendConfig, queue_name: str) -> None:
    """Let the queue be claimed from again. The time it was paused does not count as latency.

    Claims go on at once. The ready jobs that the pause held up are then told so some at a time, and those
    that others hold, claims mostly, are left alone.
    """

    def lift(dialect: Dialect, cursor: CursorWrapper) -> tuple[datetime, datetime] | None:
        pauses = _pauses(config, queue_name).select_for_update()
        found, lost = readable.read(pauses)
        if not found and not lost:
            return None
        for paused in found:
            paused.delete()
        # Since when a pause has been that cannot be read, nobody knows; it ends all the same.
        pauses.filter(pk__in=lost)._raw_delete(config.database_alias)
        dialect.notify(cursor, config.alias)
        now = dialect.now(cursor)
        # Nor of one that is yet to come.
        return min(found[0].created_at, now) if found else now, now

    pause = transactions.run(config.database_alias, lift)
    if pause is None:
        return
    _forget_pause(config, queue_name, *pause)
    events.emit("queue.resumed", queue_name=queue_name)


def names(config: BackendConfig) -> list[str]:
    """Return the names of the queues that hold ready jobs, in order."""
    rows = ReadyExecution.objects.using(config.database_alias).filter(backend_alias=config.alias)
    return list(rows.order_by("queue_name").values_list("queue_name", flat=True).distinct())


def _ready(config: BackendConfig, queue_name: str) -> QuerySet[ReadyExecution]:
    return ReadyExecution.objects.using(config.database_alias).filter(backend_alias=config.alias, queue_name=queue_name)


def _pauses(config: BackendConfig, queue_name: str) -> QuerySet[Pause]:
    return Pause.objects.using(config.database_alias).filter(backend_alias=config.alias, queue_name=queue_name)


def _forget_pause(config: BackendConfig, queue_name: str, began: datetime, ended: datetime) -> None:
    """Take a pause off the latency of the ready jobs that it held up, in small batches."""
    rows = _ready(config, queue_name).filter(created_at__lt=ended)
    skip_locked = connections[config.database_alias].features.has_select_for_update_skip_locked

    def forget(priority: int, after: int, *_: object) -> int | None:
        # In the order of the index that claims of a queue go by.
        batch = rows.filter(priority=priority, pk__gt=after).order_by("pk").select_for_update(skip_locked=skip_locked)
        pks = list(batch.values_list("pk", flat=True)[:_BATCH])
        some = _ready(config, queue_name).filter(pk__in=pks)
        # What came during the pause begins to wait now; what had waited before goes on from there.
        some.filter(created_at__gte=began).update(latency_started_at=ended)
        some.filter(created_at__lt=began).update(
            latency_started_at=Coalesce("latency_started_at", "created_at") + (ended - began)
        )
        return pks[-1] if len(pks) == _BATCH else None

    priorities = rows.order_by("-priority").values_list("priority", flat=True)
    priority = transactions.read(config.database_alias, priorities.first)
    while priority is not None:
        after: int | None = 0
        while after is not None:
            after = transactions.run(config.database_alias, partial(forget, priority, after))
        priority = transactions.read(config.database_alias, priorities.filter(priority__lt=priority).first)
