"""Collects every mistake of a configuration and tells them in one exception."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured

_LONGEST_VALUE = 80


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

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    def say(self, place: Place, sentence: str) -> None:
        self._lines.append(f"{place}: {sentence}")

    def add(self, place: Place, expected: str, given: Any, note: str = "") -> None:
        self.say(place, f"expected {expected}, got {_shortened(given)}{note and f' ({note})'}")

    def unknown(self, place: Place, given: Any, known: Iterable[str]) -> None:
        """The key that `place` ends with is none of the `known` ones."""
        names = list(known)
        hint = nearest(place.keys[-1], names) or f"known here: {listed(names)}"
        self.say(place, f"expected a known option, got {_shortened(given)}; {hint}")

    def raise_any(self, alias: str) -> None:
        if self._lines:
            raise self.error(alias)

    def error(self, alias: str) -> ImproperlyConfigured:
        """One exception that tells all mistakes."""
        count = "1 mistake" if len(self) == 1 else f"{len(self)} mistakes"
        lines = "".join(f"\n  {line}" for line in self._lines)
        return ImproperlyConfigured(
            f"dj-queue cannot use the configuration of {alias!r} ({count}):{lines}\n"
            "Correct each line above, then verify with `python manage.py check`."
        )


def nearest(given: Any, known: Iterable[str]) -> str:
    """A question that names what was probably meant, or nothing."""
    from difflib import get_close_matches  # only needed once something is wrong

    matches = get_close_matches(given.lower(), known, n=1) if isinstance(given, str) else []
    return f"did you mean {matches[0]!r}?" if matches else ""


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _shortened(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _subscript(key: Any) -> str:
    return f"[{json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)}]"


def _attribute(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else _subscript(key)
