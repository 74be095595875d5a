"""Collects every mistake of a configuration and tells them in one exception."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured

_LONGEST_VALUE = 80
_DEEPEST_VALUE = 10
_MOST_BITS = 2000  # Python may be set to refuse to write a longer integer in digits
# As many as are told one by one. A file of nonsense is one mistake, not thousands.
_MOST = 50


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written, spelled as in the file it comes from."""

    root: str
    keys: tuple[Any, ...] = ()
    yaml: bool = False

    def at(self, key: Any) -> "Place":
        return Place(self.root, (*self.keys, key), self.yaml)

    def __str__(self) -> str:
        if not self.yaml:
            return self.root + "".join(map(_subscript, self.keys))
        path = "".join(map(_attribute, self.keys)).removeprefix(".")
        return f"{self.root}: {path}" if path else self.root


class Mistakes:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether further mistakes are only counted."""
        return self._count >= _MOST

    @property
    def lines(self) -> list[str]:
        untold = self._count - len(self._lines)
        return [*self._lines, f"and {untold} more"] if untold else list(self._lines)

    def say(self, place: Place, sentence: str) -> None:
        if not self.full:
            self._lines.append(f"{place}: {sentence}")
        self._count += 1

    def add(self, place: Place, expected: str, given: Any, note: str = "") -> None:
        self.say(place, "" if self.full else f"expected {expected}, got {shown(given)}{note and f' ({note})'}")

    def unknown(self, place: Place, given: Any, known: Iterable[str]) -> None:
        """The key that `place` ends with is none of the `known` ones."""
        names = list(dict.fromkeys(known))
        hint = "" if self.full else nearest(place.keys[-1], names) or f"known here: {listed(names)}"
        self.say(place, "" if self.full else f"expected a known option, got {shown(given)}; {hint}")

    def raise_any(self, alias: str) -> None:
        if self._lines:
            raise self.error(alias)

    def error(self, alias: str) -> ImproperlyConfigured:
        """One exception that tells all mistakes."""
        count = "1 mistake" if len(self) == 1 else f"{len(self)} mistakes"
        lines = "".join(f"\n  {line}" for line in self.lines)
        return ImproperlyConfigured(
            f"dj-queue cannot use the configuration of {alias!r} ({count}):{lines}\n"
            "Correct each line above, then verify with `python manage.py check`."
        )


def nearest(given: Any, known: Iterable[str]) -> str:
    """A question that names what was probably meant, or nothing."""
    from difflib import get_close_matches  # only needed once something is wrong

    plausible = isinstance(given, str) and len(given) <= _LONGEST_VALUE
    matches = get_close_matches(given.lower(), known, n=1) if plausible else []
    return f"did you mean {matches[0]!r}?" if matches else ""


def listed(names: Iterable[Any]) -> str:
    return ", ".join(map(shown, names)) or "none"


def shown(value: Any) -> str:
    """The beginning of a value as code would write it; a value of any size or shape is shown at once."""
    text = ""
    for piece in _pieces(value, 0):
        text += piece
        if len(text) > _LONGEST_VALUE:
            return f"{text[: _LONGEST_VALUE - 3]}..."
    return text


def _pieces(value: Any, depth: int) -> Iterator[str]:
    kind = type(value)  # exactly: a subclass may have a repr of its own
    if kind in (dict, list, tuple) and depth >= _DEEPEST_VALUE:
        yield "..."
    elif kind is dict:
        for n, (key, item) in enumerate(value.items()):
            yield ", " if n else "{"
            yield from _pieces(key, depth + 1)
            yield ": "
            yield from _pieces(item, depth + 1)
        yield "}" if value else "{}"
    elif kind in (list, tuple):
        opening, closing = "[]" if kind is list else "()"
        yield opening
        for n, item in enumerate(value):
            yield ", " if n else ""
            yield from _pieces(item, depth + 1)
        yield f",{closing}" if kind is tuple and len(value) == 1 else closing
    elif kind is str or kind is bytes:
        yield repr(value[: _LONGEST_VALUE + 1])
    elif kind is int and value.bit_length() > _MOST_BITS:
        yield f"an integer of {value.bit_length()} bits"
    else:
        yield _own_repr(value)


def _own_repr(value: Any) -> str:
    try:
        return repr(value).replace("\n", " ")
    except Exception as error:  # whatever an object of the application's raises
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _subscript(key: Any) -> str:
    if not isinstance(key, str):
        return f"[{shown(key)}]"
    short = key if len(key) <= _LONGEST_VALUE else f"{key[: _LONGEST_VALUE - 3]}..."
    return f"[{json.dumps(short, ensure_ascii=not short.isprintable())}]"


def _attribute(key: Any) -> str:
    plain = isinstance(key, str) and len(key) <= _LONGEST_VALUE and key.isidentifier()
    return f".{key}" if plain else _subscript(key)
