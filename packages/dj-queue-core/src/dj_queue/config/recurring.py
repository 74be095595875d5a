"""Readers for recurring tasks: schedules, time zones, arguments."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from dj_queue.config.model import RecurringConfig
from dj_queue.config.problems import Mistakes, Place
from dj_queue.config.readers import (
    Reader,
    Scalar,
    dotted_path,
    is_text,
    one_of,
    optional,
    section,
    short_text,
    text,
    whole,
)


def schedule_mistake(expression: str) -> str | None:
    """What is wrong with a cron expression, if anything."""
    from croniter import CroniterBadDateError, croniter  # lazy: it costs megabytes

    if re.search(r"\br\b", expression, re.IGNORECASE):
        # Every look at it picks another time, so it would fire again and again.
        return "random fields ('R') never mean the same time twice"
    try:
        # All the years that croniter knows. Starting from today would make a valid configuration
        # turn invalid as time goes by.
        start = datetime(1970, 1, 1)
        croniter(expression, start, max_years_between_matches=130).get_next(datetime)
    except CroniterBadDateError:
        return "it never fires"
    except Exception as error:  # another library's parser: whatever it raises, the text is wrong
        return str(error) or type(error).__name__
    return _seconds_mistake(expression)


def _seconds_mistake(expression: str) -> str | None:
    """Whether a sixth field may as well be the weekday of an expression that begins with its seconds.

    Elsewhere seconds come first. What can mean one thing alone is taken; the rest would fire at other times than
    its author thinks, and nothing would say so.
    """
    fields = expression.split()
    if len(fields) < 6 or all(field == "*" for field in fields[:6]):
        return None
    seconds = fields[5]
    if seconds.startswith("*/") or any(int(number) > 7 for number in re.findall(r"\d+", seconds)):
        return None  # no weekday is written so
    if seconds == "0" and len(fields) == 7:
        return None  # there is no other way to give a year
    return (
        f"the sixth field, {seconds!r}, is the seconds here: they come last, and a weekday in their place would be"
        " misread. Leave the field out for a tick at second 0, or write '* * * * * */10' for one every 10 seconds"
    )


# MySQL's JSON nests no deeper. What is wanted beyond these belongs into the task.
_DEEPEST = 100
_MOST_VALUES = 10_000
_MOST_BITS = 4096  # Python refuses to write some longer ones in digits

_schedule_text = short_text(255)


def schedule(value: Any, place: Place, mistakes: Mistakes) -> Any:
    if _schedule_text.accepts(value):
        wrong = schedule_mistake(value)
        if wrong is None:
            return value
        mistakes.add(place, "a cron expression such as '0 3 * * *'", value, wrong)
        return None
    return _schedule_text(value, place, mistakes)


def _is_zone(value: Any) -> bool:
    from zoneinfo import ZoneInfo

    try:
        return isinstance(value, str) and bool(ZoneInfo(value))
    except (KeyError, ValueError, OSError):
        return False


zone = optional(Scalar("a time zone such as 'Europe/Berlin'", _is_zone))


def _is_json(value: Any) -> bool:
    """Whether JSON holds it, and every database that JSON: not too deep, not endless, and no cycle."""
    left = [(value, 1)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST_VALUES:
            return False
        match value:
            case None | bool():
                continue
            case int():
                fits = value.bit_length() <= _MOST_BITS
            case float():
                fits = math.isfinite(value)
            case str():
                fits = is_text(value)
            case Mapping():
                fits = all(map(is_text, value))
                left += ((item, depth + 1) for item in value.values())
            case list() | tuple():
                fits = True
                left += ((item, depth + 1) for item in value)
            case _:
                fits = False
        if not fits:
            return False
    return True


def _as_stored(value: Any) -> Any:
    """As it comes back from the database: with lists for tuples, and without exponents (see `serialization`)."""
    if isinstance(value, Mapping):
        return {key: _as_stored(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_stored(item) for item in value]
    return int(value) if isinstance(value, float) and abs(value) >= 1e16 else value


positional = Scalar(
    "a list of JSON values",
    lambda value: isinstance(value, list | tuple) and _is_json(value),
    lambda value: tuple(_as_stored(value)),
)
keywords = Scalar(
    "a mapping of names to JSON values",
    lambda value: isinstance(value, Mapping) and _is_json(value),
    _as_stored,
)


_FIELDS: dict[str, Reader] = {
    "task_path": dotted_path,
    "schedule": schedule,
    "args": positional,
    "kwargs": keywords,
    "queue_name": short_text(64),
    "priority": whole(-100, 100),
    "description": text,
    "timezone": zone,
    "catch_up": one_of("latest", "none"),
}
_REQUIRED = ("task_path", "schedule")
_key = short_text(255)


def recurring(value: Any, place: Place, mistakes: Mistakes) -> Any:
    """A mapping from the keys of recurring tasks to their options."""
    if not isinstance(value, Mapping):
        mistakes.add(place, "a mapping from keys to recurring tasks", value)
        return None
    tasks = []
    for key, item in value.items():
        if mistakes.full:
            break
        if not _key.accepts(key):
            mistakes.add(place, f"every key to be {_key.expected}", key)
        read_task = section(partial(RecurringConfig, key), _FIELDS, _REQUIRED)
        tasks.append(read_task(item, place.at(key), mistakes))
    return tuple(tasks)


def read_recurring_task(key: Any, options: Mapping[str, Any]) -> tuple[RecurringConfig | None, list[str]]:
    """Read one recurring task that was given in code; return it, or None, and everything that is wrong with it."""
    mistakes = Mistakes()
    place = Place("recurring task", yaml=True)
    _key(key, place.at("key"), mistakes)
    task = section(partial(RecurringConfig, key), _FIELDS, _REQUIRED)(options, place, mistakes)
    return (None if mistakes.lines else task), mistakes.lines
