"""Stored data as text for a page: parsed with care, cut to size, with nothing invisible in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from django.db.models import Model, QuerySet, TextField
from django.db.models.functions import Cast, Left

from dj_queue_admin.printable import LONGEST, visible
from dj_queue_admin.redaction import Argument

# Of what is read for one row of a list: whole, or not at all, as what is hidden is found in whole values alone.
LONGEST_IN_LIST: Final = 64_000
_BRIEF = 140
_ONE_LINE = 80


__all__ = ["LONGEST", "LONGEST_IN_LIST", "Unreadable", "as_text", "brief", "parse", "pretty", "read_field", "visible"]


class Unreadable:
    """JSON that was too long to be read for a list, or that Python cannot parse."""

    def __init__(self, why: str) -> None:
        self.why = why


def as_text[M: Model](rows: QuerySet[M], limit: int | None = None, **fields: str) -> QuerySet[M]:
    """Read JSON fields as text under other names, not more than `limit` characters of each.

    Django would parse them whole, whatever their size, and raise for those that Python cannot parse.
    """
    texts = {name: Cast(field, TextField()) for name, field in fields.items()}
    wanted: QuerySet[M] = rows.annotate(
        **{name: text if limit is None else Left(text, limit + 1) for name, text in texts.items()}
    )
    return wanted


def parse(text: str | None, limit: int | None = None) -> Any:
    """The value of JSON text; `Unreadable` if it was cut off or is too much for Python."""
    if text is None:
        return None
    if limit is not None and len(text) > limit:
        return Unreadable(f"more than {limit:,} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Unreadable("it cannot be read as JSON")


def read_field(rows: QuerySet[Any], field: str) -> Any:
    """The value of one JSON field of the first row."""
    return parse(as_text(rows, None, json_text=field).values_list("json_text", flat=True).first())


def pretty(value: Any) -> str:
    """A value for a page, on several lines unless it is short."""
    if isinstance(value, Unreadable):
        return f"not shown: {value.why}"
    try:
        line = json.dumps(value, ensure_ascii=False)
        return visible(line if len(line) <= _ONE_LINE else json.dumps(value, indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):  # an integer with more digits than Python writes
        return "not shown: it cannot be written as JSON"


def brief(call: Sequence[Argument]) -> str:
    """Arguments on one short line, for a list."""
    parts, length = [], 0
    for name, value, keyword in call:
        part = _short(value)[: 2 * _BRIEF]
        parts.append(f"{name}={part}" if keyword else part)
        length += len(parts[-1]) + 2
        if length > _BRIEF:
            break
    return visible(", ".join(parts), longest=_BRIEF, lines=False)


def _short(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "…"
