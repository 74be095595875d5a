"""Rows that may hold what cannot be read: each is left out alone, and told of once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.core.exceptions import ObjectDoesNotExist
from django.db.models import DateTimeField, Model, QuerySet

from dj_queue.dialects import dialect_for
from dj_queue.exceptions import UnreadableJobError

logger = logging.getLogger("dj_queue")

_MOST_TOLD = 1000
_told: set[tuple[str, object, str]] = set()


class Rows[T](NamedTuple):
    rows: list[T]
    lost: list[Any]  # the primary keys of rows that cannot be read


def read(rows: QuerySet[Any, Any]) -> Rows[Any]:
    """The rows of a queryset that can be read. Where all can, that is one statement."""
    try:
        return Rows([whole(row) for row in rows.all()], [])
    except Exception as error:
        if dialect_for(rows.db).is_unanswered(error):
            raise
    # Without its limit, that its rows can be asked for by their keys.
    each = rows.all()
    each.query.clear_limits()
    found: Rows[Any] = Rows([], [])
    _halve(each, list(rows.values_list("pk", flat=True)), found)
    return found


def _halve(rows: QuerySet[Any, Any], pks: Sequence[Any], found: Rows[Any]) -> None:
    if not pks:
        return
    try:
        found.rows.extend([whole(row) for row in rows.filter(pk__in=pks)])
    except Exception as error:
        if dialect_for(rows.db).is_unanswered(error):
            raise
        if len(pks) > 1:
            middle = len(pks) // 2
            _halve(rows, pks[:middle], found)
            _halve(rows, pks[middle:], found)
            return
        found.lost.append(pks[0])
        _tell(rows.model._meta.db_table, pks[0], error)


def whole[R](row: R) -> R:
    """The row of a model. Raises `ValueError` where a time is none: so Django reads text that SQLite has there."""
    if isinstance(row, Model):
        for field in row._meta.concrete_fields:
            if isinstance(field, DateTimeField) and not field.null and row.__dict__.get(field.attname, 0) is None:
                raise ValueError(f"its {field.attname} is no time")
    return row


@contextmanager
def named(database: str, job_id: object) -> Iterator[None]:
    """Raise `UnreadableJobError`, which names the job, if its row cannot be read."""
    try:
        yield
    except ObjectDoesNotExist:
        raise
    except Exception as error:
        if dialect_for(database).is_unanswered(error):
            raise
        raise UnreadableJobError(
            f"the stored job {job_id} cannot be read: {type(error).__name__}: {error}. Correct its row, or discard it."
        ) from error


def _tell(table: str, pk: object, error: Exception) -> None:
    words = f"{type(error).__name__}: {error}"
    if (table, pk, words) in _told or len(_told) >= _MOST_TOLD:
        return
    _told.add((table, pk, words))
    logger.error(
        "dj_queue: the row %s of %s cannot be read, and is left out: %s. Correct it, or delete it.", pk, table, words
    )
