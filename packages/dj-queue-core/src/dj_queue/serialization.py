"""What may be stored, and how: arguments and return values as JSON, errors as text."""

import json
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dj_queue.exceptions import NotJSONError, NotUTF8Error

# Longer texts keep their first and last halves: a message of a gigabyte must not stop the queue.
_TEXT_LIMIT = 64 * 1024

_WRITTEN_WITH_EXPONENT = 1e16
# Values of one argument list or result: tens of megabytes of JSON at least.
_MOST_VALUES = 10_000_000
# What a message shows of the way to a value: how many steps from its root, and how many characters of each.
_LONGEST_WAY = 10
_LONGEST_STEP = 60
_NO_SCALAR = object()
_SMALLEST_INTEGER, _LARGEST_INTEGER = -(2**63), 2**64 - 1


class JSONLimits(NamedTuple):
    """What a database's JSON columns can hold."""

    depth: int
    nul: bool = True
    wide_integers: bool = True  # of more than 64 bits


def normalize(value: Any, limits: JSONLimits) -> Any:
    """Return `value` in plain JSON types, exactly as the database will give it back.

    Tuples and other sequences become lists and UTF-8 bytes become text, as in Django's own
    backends. Raises `NotJSONError`, which names the place, for everything else that would
    change on its way: NaN, infinities, keys that are not text, lone surrogates, nesting deeper
    than the database stores, NUL characters where it refuses them, and integers that it rounds.
    For bytes that are not UTF-8 that is a `NotUTF8Error`.
    """
    try:
        return _normalize(value, limits, [_MOST_VALUES], 0)
    except _Refused as refused:
        raise refused.error() from refused.__cause__
    except RecursionError as error:  # the caller's own stack was deep already
        raise NotJSONError("the value is nested deeper than Python's stack reaches from here") from error


def dump(value: Any) -> str:
    """Encode a value that `normalize` returned."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except ValueError as error:  # an integer of more digits than Python writes
        raise NotJSONError(str(error)) from error


class ErrorRecord(NamedTuple):
    """An exception as a failed job keeps it."""

    exception_class: str
    message: str
    traceback: str


def describe(error: BaseException, *, skip_frames: int = 0) -> ErrorRecord:
    """Describe an exception in text that every database stores; never raises.

    `skip_frames` leaves out that many of our own frames at the top of the traceback.
    """
    trace = error.__traceback__
    for _ in range(skip_frames):
        trace = trace.tb_next if trace is not None else None
    kind = type(error)
    try:
        formatted = "".join(traceback.format_exception(kind, error, trace))
    except BaseException as failure:  # an exception may break whatever looks at it
        formatted = f"{kind.__qualname__}: <traceback not available: {type(failure).__name__}>"
    try:
        message = str(error)
    except BaseException as failure:
        message = f"<str() of the exception raised {type(failure).__name__}>"
    return ErrorRecord(
        exception_class=storable(f"{kind.__module__}.{kind.__qualname__}")[:255],
        message=storable(message),
        traceback=storable(formatted),
    )


def is_storable(value: object) -> bool:
    """Whether it is text that every database stores and compares: without NUL and lone surrogates."""
    return isinstance(value, str) and storable(value) == value


def storable(text: str) -> str:
    """Return `text` without what a text column refuses, and no longer than its bound."""
    if len(text) > _TEXT_LIMIT:
        half = _TEXT_LIMIT // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


class _Refused(Exception):
    """Why a value is not JSON, and the way to its place: gathered on the way out, as only an error needs it."""

    def __init__(self, words: str, kind: type[NotJSONError] = NotJSONError, *, verb: str = "is") -> None:
        super().__init__(words)
        self.words = f"{verb} {words}"
        self.kind = kind
        self.way: list[object] = []  # from the inside out

    def error(self) -> NotJSONError:
        # What is nested too deep, or contains itself, has a way as long.
        steps = [f"[{_shown(step)}]" for step in reversed(self.way[-_LONGEST_WAY:])]
        way = "".join(steps) + ("..." if len(self.way) > _LONGEST_WAY else "")
        return self.kind(f"{way or 'the value'} {self.words}")


def _normalize(value: Any, limits: JSONLimits, left: list[int], depth: int) -> Any:
    found = _scalar(value, limits)
    if found is not _NO_SCALAR:
        return found
    if depth >= limits.depth:
        raise _Refused(f"nested deeper than {limits.depth} levels")
    step: object = None
    try:
        # One frame a level: Python allows a thousand.
        match value:
            case Mapping():
                _count(len(value), left)
                mapping = {}
                for step, item in value.items():
                    if not isinstance(step, str):
                        break
                    mapping[_text(step, limits)] = _normalize(item, limits, left, depth + 1)
                else:
                    return mapping
            case Sequence():
                _count(len(value), left)
                items: list[Any] = []
                for step, item in enumerate(value):  # noqa: B007
                    items.append(_normalize(item, limits, left, depth + 1))
                return items
    except _Refused as refused:
        if step is not None:
            refused.way.append(step)
        raise
    if isinstance(value, Mapping):
        raise _Refused(f"the key {_shown(step)}, and JSON keys are text", verb="has")
    name = type(value).__qualname__[:_LONGEST_STEP]
    article = "an" if name[:1] in tuple("aeiouAEIOU") else "a"
    raise _Refused(f"{article} {name}, which is not a JSON type (Unsupported type: {_shown(type(value))})")


def _scalar(value: Any, limits: JSONLimits) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return _text(value, limits)
        case int():
            if not limits.wide_integers and not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
                raise _Refused("an integer of more than 64 bits, which this database rounds")
            return int(value)
        case float():
            if not math.isfinite(value):
                raise _Refused(f"{value!r}, and JSON has no such number")
            # PostgreSQL writes such a number without an exponent, and it comes back as an integer.
            return int(value) if limits.wide_integers and abs(value) >= _WRITTEN_WITH_EXPONENT else float(value)
        case bytes():
            try:
                return _text(value.decode(), limits)
            except UnicodeDecodeError as error:
                words = f"bytes that are not UTF-8 text (Unsupported value: {type(value)})"
                raise _Refused(words, NotUTF8Error) from error
    return _NO_SCALAR


def _count(count: int, left: list[int]) -> None:
    # A few lists that hold each other many times over are small here, and endless as JSON.
    left[0] -= count
    if left[0] < 0:
        raise _Refused(f"more than {_MOST_VALUES:,} values in all", verb="holds")


def _text(text: str, limits: JSONLimits) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _Refused("a lone surrogate, which is not valid text", verb="holds") from error
    if not limits.nul and "\0" in text:
        raise _Refused("a NUL character, which this database refuses", verb="holds")
    return str.__str__(text)  # plain text, whatever subclass


def _shown(value: object) -> str:
    """A short text for a value that may be anything."""
    try:
        text = repr(value[:_LONGEST_STEP] if isinstance(value, str | bytes) else value)
    except Exception as error:  # its own, or an integer of more digits than Python writes
        return f"<{type(value).__qualname__[:_LONGEST_STEP]}: {type(error).__name__}>"
    cut = len(text) > 2 * _LONGEST_STEP or (isinstance(value, str | bytes) and len(value) > _LONGEST_STEP)
    return f"{text[: 2 * _LONGEST_STEP]}..." if cut else text
