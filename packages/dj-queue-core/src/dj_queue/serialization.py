"""What may be stored, and how: arguments and return values as JSON, errors as text."""

import json
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dj_queue.exceptions import NotJSONError

# Longer texts keep their first and last halves: a message of a gigabyte must not stop the queue.
_TEXT_LIMIT = 64 * 1024

_WRITTEN_WITH_EXPONENT = 1e16
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
    """
    return _normalize(value, limits, "", 0)


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


def storable(text: str) -> str:
    """Return `text` without what a text column refuses, and no longer than its bound."""
    if len(text) > _TEXT_LIMIT:
        half = _TEXT_LIMIT // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _normalize(value: Any, limits: JSONLimits, path: str, depth: int) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return _text(value, limits, path)
        case int():
            if not limits.wide_integers and not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
                raise NotJSONError(f"{_at(path)} is an integer of more than 64 bits, which this database rounds")
            return int(value)
        case float():
            if not math.isfinite(value):
                raise NotJSONError(f"{_at(path)} is {value!r}, and JSON has no such number")
            # PostgreSQL writes such a number without an exponent, and it comes back as an integer.
            return int(value) if limits.wide_integers and abs(value) >= _WRITTEN_WITH_EXPONENT else float(value)
        case bytes():
            try:
                return _text(value.decode(), limits, path)
            except UnicodeDecodeError as error:
                raise NotJSONError(f"{_at(path)} is bytes that are not UTF-8 text") from error
    if depth >= limits.depth:
        raise NotJSONError(f"{_at(path[:80])} is nested deeper than {limits.depth} levels")
    match value:
        case Mapping():
            return {
                _key(key, limits, path): _normalize(item, limits, f"{path}[{key!r}]", depth + 1)
                for key, item in value.items()
            }
        case Sequence():
            return [_normalize(item, limits, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    name = type(value).__qualname__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    raise NotJSONError(f"{_at(path)} is {article} {name}, which is not a JSON type")


def _key(key: object, limits: JSONLimits, path: str) -> str:
    if not isinstance(key, str):
        raise NotJSONError(f"{_at(path)} has the key {key!r}, and JSON keys are text")
    return _text(key, limits, path)


def _text(text: str, limits: JSONLimits, path: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise NotJSONError(f"{_at(path)} holds a lone surrogate, which is not valid text") from error
    if not limits.nul and "\0" in text:
        raise NotJSONError(f"{_at(path)} holds a NUL character, which this database refuses")
    return str.__str__(text)  # plain text, whatever subclass


def _at(path: str) -> str:
    return path or "the value"
