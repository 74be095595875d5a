"""Who did what: entries in Django's own admin log, written after the deed is done."""

from collections.abc import Iterable

from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.http import HttpRequest

_LONGEST_NAME = 200


def record(request: HttpRequest, rows: Iterable[Model], message: str, *, deleted: bool = False) -> None:
    """Note one entry for each row. Rows that the deed has deleted are named as they were."""
    rows = list(rows)
    if rows:
        LogEntry.objects.log_actions(_user(request), rows, DELETION if deleted else CHANGE, message)


def record_one(
    request: HttpRequest,
    model: type[Model],
    name: str,
    message: str,
    *,
    object_id: object = None,
    deleted: bool = False,
) -> None:
    """Note one entry for what is no single row: a queue, or all that matched a filter."""
    LogEntry.objects.create(
        user_id=_user(request),
        content_type=ContentType.objects.get_for_model(model, for_concrete_model=False),
        object_id=None if object_id is None else str(object_id),
        object_repr=name[:_LONGEST_NAME],
        action_flag=DELETION if deleted else CHANGE,
        change_message=message,
    )


def _user(request: HttpRequest) -> int:
    assert request.user.pk is not None  # the admin lets nobody in who is not known
    return request.user.pk
