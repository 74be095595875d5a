"""One small reader for each kind of value.

A reader takes a value as it was written and returns it as the model wants it. What does not fit
is told to `mistakes`; what the reader then returns is thrown away.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.conf import settings
from django.utils.module_loading import import_string

from dj_queue.config.problems import Mistakes, Place, listed, nearest

type Reader = Callable[[Any, Place, Mistakes], Any]

# A hundred years. Beyond it, dates and the waits of the operating system overflow.
_LONGEST = 100 * 365 * 86400
_LARGEST = 2**31 - 1  # what every database holds as an integer


@dataclass(frozen=True, slots=True)
class Scalar:
    """Reads a value that is right or wrong on its own."""

    expected: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    # What is wrong with a value, where that is not plain from the two.
    note: Callable[[Any], str] = lambda value: ""

    def __call__(self, value: Any, place: Place, mistakes: Mistakes) -> Any:
        if self.accepts(value):
            return self.convert(value)
        mistakes.add(place, self.expected, value, self.note(value))
        return None


def _is_number(value: Any) -> bool:
    # True and False are ints to Python. Here they are mistakes.
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(minimum: int, maximum: int | None = None) -> Scalar:
    """A whole number, also where it is written as 3.0."""
    bounds = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    most = _LARGEST if maximum is None else maximum

    def accepts(value: Any) -> bool:
        if not _is_number(value) or (isinstance(value, float) and not value.is_integer()):
            return False
        return bool(minimum <= value <= most)

    def note(value: Any) -> str:
        too_large = maximum is None and isinstance(value, int) and value > most
        return f"the largest is {most}" if too_large else ""

    return Scalar(f"a whole number {bounds}", accepts, int, note)


# Comparing with both bounds also refuses NaN and the infinities.
interval = Scalar(
    f"a number of seconds > 0 and at most {_LONGEST} (100 years)",
    lambda value: _is_number(value) and 0 < value <= _LONGEST,
)
duration = Scalar(
    f"a number of seconds >= 0 and at most {_LONGEST} (100 years)",
    lambda value: _is_number(value) and 0 <= value <= _LONGEST,
)
boolean = Scalar("True or False", lambda value: isinstance(value, bool))


def is_text(value: Any) -> bool:
    """Text that every database stores: without NUL and lone surrogates."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


text = Scalar("a string", is_text)
file_path = Scalar(
    "a file path",
    lambda value: isinstance(value, str | os.PathLike) and is_text(os.fspath(value)),
    os.fspath,
)


def short_text(longest: int) -> Scalar:
    return Scalar(
        f"a non-empty string of at most {longest} characters",
        lambda value: is_text(value) and 0 < len(value) <= longest,
    )


def optional(scalar: Scalar) -> Scalar:
    return Scalar(
        f"{scalar.expected}, or None",
        lambda value: value is None or scalar.accepts(value),
        lambda value: None if value is None else scalar.convert(value),
        scalar.note,
    )


def one_of(*choices: str) -> Reader:
    def read(value: Any, place: Place, mistakes: Mistakes) -> Any:
        if not isinstance(value, str) or value not in choices:
            mistakes.add(place, f"one of {listed(choices)}", value, nearest(value, choices))
        return value

    return read


def database(value: Any, place: Place, mistakes: Mistakes) -> Any:
    return one_of(*known_databases())(value, place, mistakes)


def other_database(value: Any, place: Place, mistakes: Mistakes) -> Any:
    return None if value is None else database(value, place, mistakes)


def known_databases() -> list[str]:
    # Django itself adds "default" where DATABASES is empty.
    return list(settings.DATABASES or {"default": {}})


def section(build: Callable[..., Any], fields: Mapping[str, Reader], required: Iterable[str] = ()) -> Reader:
    """A mapping with known keys, handed to `build` as keyword arguments."""

    def read(value: Any, place: Place, mistakes: Mistakes) -> Any:
        before = len(mistakes)
        if not isinstance(value, Mapping):
            mistakes.add(place, "a mapping of options", value)
            return None
        values = {}
        for key, item in value.items():
            if key in fields:
                values[key] = fields[key](item, place.at(key), mistakes)
            else:
                mistakes.unknown(place.at(key), item, fields)
        for key in required:
            if key not in value:
                mistakes.say(place.at(key), "expected a value, got nothing: it is required")
        return build(**values) if len(mistakes) == before else None

    return read


def one_or_many(read_one: Reader) -> Reader:
    """One mapping, or a list of them."""

    def read(value: Any, place: Place, mistakes: Mistakes) -> Any:
        if isinstance(value, Mapping):
            return (read_one(value, place, mistakes),)
        if not isinstance(value, list | tuple):
            mistakes.add(place, "a mapping of options or a list of them", value)
            return None
        return tuple(read_one(item, place.at(n), mistakes) for n, item in enumerate(value))

    return read


def _is_selector(value: Any) -> bool:
    return is_text(value) and 0 < len(value) <= 64 and "*" not in value[:-1]


_selector = Scalar("a queue name, or the start of one and a final '*', of 1 to 64 characters", _is_selector)


def selectors(value: Any, place: Place, mistakes: Mistakes) -> Any:
    if isinstance(value, list | tuple):
        names = tuple(_selector(item, place.at(n), mistakes) for n, item in enumerate(value))
        return names or ("*",)
    if isinstance(value, str):
        return (_selector(value, place, mistakes),)
    mistakes.add(place, "a queue selector or a list of them", value)
    return None


def _is_dotted(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 255:
        return False
    module, _, name = value.rpartition(".")
    return bool(module) and all(part.isidentifier() for part in (*module.split("."), name))


dotted_path = Scalar("a dotted path such as 'myapp.tasks.cleanup'", _is_dotted)


def callback(value: Any, place: Place, mistakes: Mistakes) -> Any:
    if value is None:
        return None
    expected = "the dotted path of a callable, or None"
    if not _is_dotted(value):
        mistakes.add(place, expected, value)
    elif apps.ready:  # Before that, a callback that imports models could not be imported yet.
        try:
            if not callable(import_string(value)):
                mistakes.add(place, expected, value, "not callable")
        except Exception as error:  # whatever the application's module raises
            mistakes.add(place, expected, value, f"{type(error).__name__}: {error}")
    return value
