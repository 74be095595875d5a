"""Rows that a step cannot get past: taken out of its way, and told of."""

from __future__ import annotations

import logging

from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Exists, OuterRef, Q

from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, dialect_for
from dj_queue.models import BlockedExecution, ClaimedExecution, FailedExecution, ReadyExecution, ScheduledExecution
from dj_queue.operations import transactions
from dj_queue.serialization import describe

logger = logging.getLogger("dj_queue")

_MOST = 500
_SHOWN = 20


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
