"""Who did what: entries in Django's own admin log, written after the deed is done, with nothing invisible in them.

Rows of several databases have the same numbers: so an entry names its row as `backend:id`, and a row's page and
history know it by that. Only the database of the backend that pages show when none is named goes without saying.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from dj_queue.config import backend_config
from dj_queue_admin import backends
from dj_queue_admin.printable import visible

logger = logging.getLogger("dj_queue")

_LONGEST_NAME = 200


def record(request: HttpRequest, rows: Iterable[Model], message: str, *, deleted: bool = False) -> None:
    """Note one entry for each row. Rows that the deed has deleted are named as they were."""
    alias = backends.selected(request).alias
    _write(
        request,
        [
            _entry(request, type(row), str(row), message, object_id=object_id(alias, row.pk), deleted=deleted)
            for row in rows
        ],
    )


def record_one(
    request: HttpRequest,
    model: type[Model],
    name: str,
    message: str,
    *,
    deleted: bool = False,
) -> None:
    """Note one entry for what is no single row: a queue, or all that matched a filter."""
    _write(request, [_entry(request, model, name, message, object_id=None, deleted=deleted)])


def object_id(alias: str, pk: object) -> str:
    """What an entry calls a row."""
    return str(pk) if _is_usual(alias) else f"{alias}:{pk}"


def _is_usual(alias: str) -> bool:
    return backend_config(alias).database_alias == next(backends.configs()).database_alias


def named(text: str) -> tuple[str, str] | None:
    """The backend and the id that an entry's row is called by; None for a plain id."""
    alias, colon, pk = text.rpartition(":")
    return (alias, pk) if colon else None


def history(model: type[Model], alias: str, pk: Any) -> QuerySet[LogEntry]:
    """The entries of a row, the oldest first."""
    ids = [object_id(alias, pk)]
    if isinstance(pk, UUID):
        ids.append(str(pk))  # as dj-queue before 1.0 named them
    kind = ContentType.objects.get_for_model(model, for_concrete_model=False)
    return (
        LogEntry.objects.filter(object_id__in=ids, content_type=kind)
        .select_related("user", "content_type")
        .order_by("action_time")
    )


def _entry(
    request: HttpRequest, model: type[Model], name: str, message: str, *, object_id: str | None, deleted: bool
) -> LogEntry:
    return LogEntry(
        user_id=request.user.pk or 0,  # a site of its own rules may let in who is not known: the log will refuse that
        content_type=ContentType.objects.get_for_model(model, for_concrete_model=False),
        object_id=object_id,
        object_repr=visible(name, longest=_LONGEST_NAME - 1, lines=False)[:_LONGEST_NAME],
        action_flag=DELETION if deleted else CHANGE,
        change_message=visible(message, lines=False),
    )


def _write(request: HttpRequest, entries: list[LogEntry]) -> None:
    try:
        LogEntry.objects.bulk_create(entries)
    except Exception:
        # What was done is done: the person who did it is told so, and the server's log keeps what this one does not.
        for entry in entries:
            logger.exception(
                "dj_queue: not noted in the admin's log: user %s, %s: %s",
                entry.user_id,
                entry.object_repr,
                entry.change_message,
            )
        messages.error(request, "It is done, but the admin's log took no entry of it. The server's log has the reason.")
