"""The attempts of jobs that were tried before: read only for those, and bounded.

`worker_ids` and `errors` keep their first and last entries; one entry between them says how many are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from django.db import Error
from django.db.models import TextField
from django.db.models.functions import Cast

from dj_queue.config import BackendConfig
from dj_queue.dialects import FIRST_WORKERS, MOST_WORKERS, dialect_for
from dj_queue.models import Job

FIRST_ERRORS, LAST_ERRORS = 5, 15
# A class that can be imported, as every entry of a result's errors must name one.
_LEFT_OUT = "dj_queue.exceptions.DjQueueError"
_COUNT = re.compile(r"\[\.\.\. (\d{1,18}) left out \.\.\.\]")

type Pair = list[str]  # exception class, traceback


class Past(NamedTuple):
    worker_ids: list[str]
    errors: list[Pair]


def past(config: BackendConfig, job_ids: Collection[UUID]) -> dict[UUID, Past]:
    """The earlier attempts of these jobs, as far as they can be read."""
    if not job_ids:
        return {}
    # As text: one list that is none must not keep the others from being read.
    rows = (
        Job.objects.using(config.database_alias)
        .filter(pk__in=job_ids)
        .annotate(workers_text=Cast("worker_ids", TextField()), errors_text=Cast("errors", TextField()))
        .values_list("pk", "workers_text", "errors_text")
    )
    try:
        return {pk: Past(workers(_parsed(names)), pairs(_parsed(errors))) for pk, names, errors in rows}
    except (Error, ValueError) as error:
        if dialect_for(config.database_alias).is_unanswered(error):
            raise
        return {}


def workers(stored: Any) -> list[str]:
    """The names in a stored list, whatever it is."""
    return [each for each in stored if isinstance(each, str)] if isinstance(stored, list) else []


def pairs(stored: Any) -> list[Pair]:
    """The errors in a stored list, whatever it is."""
    if not isinstance(stored, list):
        return []
    return [
        each
        for each in stored
        if isinstance(each, list) and len(each) == 2 and all(isinstance(part, str) for part in each)
    ]


def with_error(errors: Sequence[Pair], exception_class: str, traceback: str) -> list[Pair]:
    """The errors and one more, within their bound."""
    found = [*errors, [exception_class, traceback]]
    return _bounded(found, FIRST_ERRORS, LAST_ERRORS, lambda each: each[1], lambda text: [_LEFT_OUT, text])


def bounded_workers(names: Sequence[str]) -> list[str]:
    last = MOST_WORKERS - FIRST_WORKERS - 1
    return _bounded(list(names), FIRST_WORKERS, last, lambda each: each, lambda text: text)


def _bounded(entries: list[Any], first: int, last: int, text_of: Any, entry_of: Any) -> list[Any]:
    if len(entries) <= first + 1 + last:
        return entries
    head, middle, tail = entries[:first], entries[first : len(entries) - last], entries[len(entries) - last :]
    count = 0
    for entry in middle:
        match = _COUNT.fullmatch(text_of(entry))
        count += int(match[1]) if match else 1
    return [*head, entry_of(f"[... {count} left out ...]"), *tail]


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
