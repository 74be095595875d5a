"""What the filters of a list ask for, as its query string has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from django.http import Http404
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from dj_queue.config import BackendConfig
from dj_queue.models import STATES
from dj_queue_admin.records.selection import Selection

# What `?` may hold, and what else it may be called: the field's name, as Django's own filters have it.
PARAMETERS: Final = {
    "status": ("state",),
    "queue": ("queue_name", "queue_name__exact"),
    "task": ("task_path", "task_path__exact"),
    "concurrency_key": ("concurrency_key__exact",),
    "recurring_task_key": (),
    "exception_class": ("exception_class__exact",),
    "since": (),
    "until": (),
    # Of other lists than those of jobs.
    "kind": ("kind__exact",),
    "hostname": ("hostname__exact",),
    "static": ("static__exact",),
}

_AGO: Final = re.compile(r"(\d{1,5})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def given(query: Mapping[str, str]) -> dict[str, str]:
    """What a query string gives for each parameter; empty where it gives nothing."""
    names = {name: (name, *others) for name, others in PARAMETERS.items()}
    return {name: next((query[key] for key in keys if query.get(key)), "") for name, keys in names.items()}


def read(query: Mapping[str, str], config: BackendConfig, *, contents: bool, text: str = "", **fixed: str) -> Selection:
    """The selection that a query string means. Raises `Http404` for a state that there is not.

    What cannot be understood is told in `mistakes`, and such a selection finds nothing: a filter that was
    dropped would let an action reach more jobs than its page showed.
    """
    values = given(query) | fixed
    mistakes = [
        f"{name} holds a character that no database stores"
        for name, value in (*values.items(), ("The search", text))
        if "\0" in value
    ]
    if values["status"] and values["status"] not in STATES:
        raise Http404(f"{values['status']!r} is no state of a job. Known: {', '.join(STATES)}.")
    since, until = (_time(name, values[name], mistakes) for name in ("since", "until"))
    return Selection(
        config,
        state=values["status"],
        queue=values["queue"],
        task=values["task"],
        key=values["concurrency_key"],
        recurring=values["recurring_task_key"],
        exception=values["exception_class"],
        text=text.strip(),
        contents=contents,
        since=since,
        until=until,
        mistakes=tuple(mistakes),
    )


def _time(name: str, text: str, mistakes: list[str]) -> datetime | None:
    if not text:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            return timezone.now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        at = parse_datetime(text)
        if at is not None and timezone.is_naive(at):
            at = timezone.make_aware(at)
        if at is not None and 1970 <= at.year <= 9000:
            return at
    except (ValueError, OverflowError):
        pass
    mistakes.append(
        f"{name} is {text[:40]!r}, which is no time such as 2026-01-31T08:00, nor 90m, 24h or 7d for so long ago"
    )
    return None
