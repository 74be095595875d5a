"""Rows of MySQL and MariaDB: written and asked for many at a time, and read as what they mean."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from dj_queue.dialects.base import Claim, flawed
from dj_queue.dialects.mysql import sql

# How many times one statement asks the same.
_UNION = 100


def write(cursor: CursorWrapper, statement: str, values: Sequence[tuple[Any, ...]], *, also: str = "") -> None:
    """Insert many rows with one statement: the driver's own executemany cuts at 64 KB."""
    if values:
        row = f"({sql.marks(values[0])}{also})"
        cursor.execute(statement.format(rows=sql.rows(len(values), row)), [value for each in values for value in each])


def delete(cursor: CursorWrapper, table: str, ids: Iterable[int]) -> None:
    if ids:
        cursor.execute(sql.DELETE.format(table=table), [sql.dump(sorted(ids))])


def for_each(cursor: CursorWrapper, one: str, params: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What a statement finds for each of these parameters, in their order: many to a round trip."""
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(params), _UNION):
        some = params[start : start + _UNION]
        cursor.execute(" UNION ALL ".join([one] * len(some)), [value for each in some for value in each])
        rows += cursor.fetchall()
    return rows


def lock_clause(cursor: CursorWrapper, table: str) -> str:
    # MySQL takes the rows of JSON_TABLE for such as could be locked; MariaDB cannot name the table that is meant.
    return "FOR UPDATE" if cursor.db.mysql_is_mariadb else f"FOR UPDATE OF {table}"


def of_jobs(cursor: CursorWrapper, column: str, job_ids: Sequence[Any]) -> dict[Any, Any]:
    if not job_ids:
        return {}
    cursor.execute(sql.JOBS.format(column=column, ids=sql.marks(job_ids)), sorted(job_ids))
    return dict(cursor.fetchall())


def claim_of(cursor: CursorWrapper, row: Sequence[Any]) -> Claim:
    claim_id, job_id, path, queue, priority, payload, scheduled, created, started, key, claimed = row
    read = partial(read_time, cursor)
    try:
        return Claim(
            claim_id, UUID(job_id), path, queue, priority, payload, scheduled and read(scheduled), read(created),
            started and read(started), key, read(claimed),
        )  # fmt: skip
    except Exception as error:  # written by something else: it must not keep the others from being read
        return flawed(claim_id, read(claimed), error, job_id=job_id)


# ---- times: columns know no zone --------------------------------------------------------------------


def stored_time(cursor: CursorWrapper, time: datetime | None) -> str | None:
    stored: str | None = cursor.db.ops.adapt_datetimefield_value(time)
    return stored


def read_time(cursor: CursorWrapper, time: datetime) -> datetime:
    return timezone.make_aware(time, cursor.db.timezone) if settings.USE_TZ else time
