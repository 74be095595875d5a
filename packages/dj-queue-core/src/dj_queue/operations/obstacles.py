"""Rows that a step cannot get past: taken out of its way, and told of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from django.db import DatabaseError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Exists, OuterRef, Q, QuerySet, TextField
from django.db.models.functions import Cast

from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, Selector, dialect_for
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Pause,
    ReadyExecution,
    ScheduledExecution,
)
from dj_queue.operations import concurrency, transactions
from dj_queue.serialization import describe

logger = logging.getLogger("dj_queue")

_MOST = 500
_SHOWN = 20
# How many rows are looked at, from the first on, where one of a few is refused.
_MOST_PROBED = 50


def can_be_treated(config: BackendConfig, refusal: Exception) -> bool:
    """Whether it is a row that the database refuses, and we are free to look for it."""
    dialect = dialect_for(config.database_alias)
    if connections[config.database_alias].in_atomic_block:
        return False
    return not (dialect.is_away(refusal) or dialect.may_pass(refusal))  # type: ignore[arg-type]


def drop_ready_doubles(config: BackendConfig) -> int:
    """Drop ready rows of jobs that are claimed at the same time; return how many. The claim decides."""
    claimed = ClaimedExecution.objects.filter(job_id=OuterRef("job_id"))

    def drop(*_: object) -> list[str]:
        rows = ReadyExecution.objects.using(config.database_alias).filter(Exists(claimed), backend_alias=config.alias)
        doubled = dict(rows.values_list("pk", "job_id")[:_MOST])
        rows.model.objects.using(config.database_alias).filter(pk__in=list(doubled)).delete()
        return [str(job_id) for job_id in doubled.values()]

    dropped = transactions.run(config.database_alias, drop)
    if dropped:
        logger.error(
            "dj_queue: jobs of %r were ready and claimed at the same time, and their ready rows were dropped: %s."
            " Look for what else writes into the queue's tables.",
            config.alias,
            ", ".join(dropped[:_SHOWN]) + (f" and {len(dropped) - _SHOWN} more" if len(dropped) > _SHOWN else ""),
        )
    return len(dropped)


def set_first_due_aside(config: BackendConfig, refusal: Exception) -> bool:
    """Fail the first due scheduled job, which cannot be promoted; return whether there was one."""
    using = config.database_alias
    rows = ScheduledExecution.objects.using(using).filter(backend_alias=config.alias)
    due = rows.filter(scheduled_at__lte=dialect_for(using).clock()).order_by("scheduled_at", "-priority", "id")

    def treat(dialect: Dialect, cursor: CursorWrapper) -> tuple[object, bool] | None:
        found = due.values_list("pk", "job_id").first()
        if found is None:
            return None
        pk, job_id = found
        others = (ReadyExecution, ClaimedExecution, BlockedExecution, FailedExecution)
        is_elsewhere = Q()
        for model in others:
            is_elsewhere |= Q(Exists(model._default_manager.filter(job_id=OuterRef("job_id"))))
        doubled = rows.filter(is_elsewhere, pk=pk).exists()
        if not doubled:
            dialect.fail_row(cursor, "dj_queue_scheduled_executions", pk, describe(refusal))
        # Not the ORM's delete: it would read the row.
        cursor.execute("DELETE FROM dj_queue_scheduled_executions WHERE id = %s", [pk])
        return job_id, doubled

    treated = transactions.run(using, treat)
    if treated is None:
        return False
    job_id, doubled = treated
    logger.error(
        "dj_queue: the scheduled job %s of %r was due and could not be promoted, and %s: %s. %s",
        job_id,
        config.alias,
        "goes on in the other state that it has" if doubled else "has failed",
        refusal,
        "Look for what else writes into the queue's tables." if doubled else "Mend that, and retry or discard it.",
    )
    return True


def set_ready_aside(config: BackendConfig, selectors: Sequence[Selector]) -> int:
    """Fail those of the first ready jobs that the database refuses to have claimed; return how many."""
    using = config.database_alias

    def claim(row: ReadyExecution) -> None:
        ReadyExecution.objects.using(using).filter(pk=row.pk).delete()
        ClaimedExecution.objects.using(using).create(job_id=row.job_id, position=row.pk)
        # As a server says it that cannot convert what is stored; what Python makes of it is the claim's to see.
        Job.objects.using(using).filter(pk=row.job_id).annotate(text=Cast("payload", TextField())).values_list(
            "task_path", "queue_name", "concurrency_key", "text"
        ).first()

    def treat(dialect: Dialect, cursor: CursorWrapper) -> int:
        rows = _refused(config, ReadyExecution, _first_ready(config, selectors), claim)
        keys = [_key_of(row) for row, _ in rows]
        _set_aside(dialect, cursor, rows)
        concurrency.release(config, dialect, cursor, keys)
        return len(rows)

    return transactions.run(using, treat)


def fail_first_ready(config: BackendConfig, selectors: Sequence[Selector], error: Exception) -> int:
    """Fail the job that a claim of one would take, as that cannot be read; return how many, which is one at most."""
    using = config.database_alias

    def treat(dialect: Dialect, cursor: CursorWrapper) -> int:
        rows = ReadyExecution.objects.using(using).filter(pk__in=_first_ready(config, selectors)[:1])
        # Waited for: who else claims it cannot read it either.
        row = rows.select_for_update().only("job_id").first()
        if row is None:
            return 0
        key = _key_of(row)
        _set_aside(dialect, cursor, [(row, error)])
        concurrency.release(config, dialect, cursor, [key])
        return 1

    return transactions.run(using, treat)


def set_blocked_aside(config: BackendConfig, key: str) -> int:
    """Fail those of the first jobs blocked on a key that the database refuses to have made ready; return how many."""
    using = config.database_alias

    def start(row: BlockedExecution) -> None:
        ready = ReadyExecution(
            job_id=row.job_id,
            backend_alias=row.backend_alias,
            queue_name=row.queue_name,
            priority=row.priority,
            concurrency_key=row.concurrency_key,
            created_at=row.created_at,
        )
        BlockedExecution.objects.using(using).filter(pk=row.pk).delete()
        ready.save(using=using, force_insert=True)

    def treat(dialect: Dialect, cursor: CursorWrapper) -> int:
        dialect.lock_semaphores(cursor, [key])
        first = BlockedExecution.objects.using(using).filter(concurrency_key=key).order_by("-priority", "pk")
        rows = _refused(config, BlockedExecution, first.values_list("pk", flat=True)[:_MOST_PROBED], start)
        _set_aside(dialect, cursor, rows)
        return len(rows)

    return transactions.run(using, treat)


def _first_ready(config: BackendConfig, selectors: Sequence[Selector]) -> list[int]:
    """The rows that a claim would take first, in no more than roughly its order."""
    using = config.database_alias
    rows = ReadyExecution.objects.using(using).filter(backend_alias=config.alias)
    pauses = Pause.objects.filter(backend_alias=config.alias, queue_name=OuterRef("queue_name"))
    rows = rows.exclude(Exists(pauses))
    found: dict[int, None] = {}
    for selector in selectors:
        mine = rows
        if not selector.everything:
            names = rows.values_list("queue_name", flat=True).distinct()
            mine = rows.filter(queue_name__in=[name for name in names if selector.matches(name)])
        found |= dict.fromkeys(mine.order_by("-priority", "pk").values_list("pk", flat=True)[:_MOST_PROBED])
    return list(found)[:_MOST_PROBED]


def _refused[M: (ReadyExecution, BlockedExecution)](
    config: BackendConfig, model: type[M], pks: Iterable[int], move: Callable[[M], None]
) -> list[tuple[M, DatabaseError]]:
    """Those rows, locked, of which the database refuses the move, and its words. Nothing is moved."""
    using = config.database_alias
    skip_locked = connections[using].features.has_select_for_update_skip_locked
    rows: QuerySet[M] = model._default_manager.using(using).select_for_update(skip_locked=skip_locked)
    found = []
    for pk in list(pks):
        # Nothing but what the move needs: some of it may be what cannot be read.
        row = rows.filter(pk=pk).only("job_id").first()
        if row is None:
            continue
        refusal = transactions.refusal(using, partial(move, row))
        # What may pass says nothing of this row, and is nobody's reason to fail.
        if refusal is not None and not dialect_for(using).may_pass(refusal):
            found.append((row, refusal))
    return found


def _key_of(row: ReadyExecution) -> str | None:
    """Its key; None if that cannot be read, and upkeep finds the slot free."""
    keys: list[str | None] = []
    rows = ReadyExecution.objects.using(row._state.db).filter(pk=row.pk).values_list("concurrency_key", flat=True)
    transactions.refusal(row._state.db or "default", lambda: keys.extend(rows))
    return keys[0] if keys else None


def _set_aside(
    dialect: Dialect, cursor: CursorWrapper, rows: Sequence[tuple[ReadyExecution | BlockedExecution, Exception]]
) -> None:
    for row, refusal in rows:
        table = row._meta.db_table
        dialect.fail_row(cursor, table, row.pk, describe(refusal))
        cursor.execute(f"DELETE FROM {table} WHERE id = %s", [row.pk])
        logger.error(
            "dj_queue: the job %s has failed, as it can be neither claimed nor started: %s", row.job_id, refusal
        )
