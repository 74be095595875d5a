"""Hides values by the names they go under, wherever stored data is shown or searched.

A name is hidden if it contains one of the option `redact`, whatever its case and however its words are
joined: "token" hides `access_token`, `AccessToken` and `X-CSRF-Token`. Positional arguments go under the
names of the task's parameters, as long as the task can be imported. Names are also found in pairs
(`["Authorization", ...]`), in `{"name": ..., "value": ...}`, in texts that are JSON, in addresses
(`postgres://user:...@host`, `?api_key=...`) and before `Bearer`, `Basic` and `Token`. A value that is hidden
anywhere in a call is hidden everywhere in it, and in the texts that came of it.
"""

from __future__ import annotations

import inspect
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple

from django.core.signals import setting_changed

from dj_queue_admin import tasks
from dj_queue_admin.options import SETTING, options
from dj_queue_admin.secrets import HIDDEN, Secrets

DEEPER: Final = "…"

_DEEPEST = 40
# What holds no names: there may be a million of them.
_NAMELESS = {int, float, bool, type(None)}
_MOST_SHOWN = 20_000
# Texts within arguments that are longer are not looked through for names.
_LONGEST_TEXT = 100_000
_NAMES = ("name", "key", "header", "field", "param", "parameter")
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:([^@\s/]+)@")
# Names begin where no name goes on: else a long word would be looked through from each of its letters.
_ASSIGNED = re.compile(r"""(?<![\w.\-])([\w.\-]{1,80})["']?(?:=|["']\s*:\s*)["']?([^\s&;,"']+)""")
_SCHEME = re.compile(r"\b(?:bearer|basic|token|digest)\s+([\w.~+/=\-]{4,})", re.IGNORECASE)
_SCHEMES = ("bearer", "basic", "token", "digest")


class Argument(NamedTuple):
    """One argument of a call, as it may be shown."""

    name: str  # of the parameter or keyword, else the position
    value: Any
    keyword: bool = False


@dataclass
class _Budget:
    """How many more values are copied: a page shows no more characters of them than this."""

    left: int


@dataclass(frozen=True)
class Redaction:
    words: tuple[str, ...]

    def hides(self, name: object) -> bool:
        """Whether values under this name are hidden."""
        return bool(self.words) and self._pattern.search(_plain(str(name))) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.words)))

    def of(self, value: Any, secrets: Secrets | None = None) -> Any:
        """A copy of plain JSON data without hidden values, its own and those given.

        Cut off where it nests deeply, and after more values than any page shows.
        """
        secrets = Secrets([*self._found(value), *(secrets.values if secrets else ())])
        return self._shown(value, secrets, _Budget(_MOST_SHOWN))

    def call(
        self, task_path: str, payload: Any, *, secrets: Secrets | None = None, most: int | None = None
    ) -> list[Argument]:
        """The arguments of a stored call, by name where that is known: the first ones, up to a limit.

        `secrets` are those of this call, where they are known already.
        """
        secrets = self.secrets(task_path, payload) if secrets is None else secrets
        args, kwargs = _parts(payload)
        budget = _Budget(_MOST_SHOWN)
        found = [(name, value, False) for name, value in _named(task_path, args[:most])]
        found += [(name, value, True) for name, value in islice(kwargs.items(), most)]
        return [
            Argument(
                secrets.hide(name) if keyword else name,
                HIDDEN if self.hides(name) else self._shown(value, secrets, budget),
                keyword,
            )
            for name, value, keyword in found[:most]
        ]

    @staticmethod
    def count(payload: Any) -> int:
        """How many arguments a stored call has."""
        args, kwargs = _parts(payload)
        return len(args) + len(kwargs)

    def secrets(self, task_path: str, payload: Any) -> Secrets:
        """The hidden values of a call, as they may turn up in texts."""
        args, kwargs = _parts(payload)
        found: list[str] = []
        for name, value in (*_named(task_path, args), *kwargs.items()):
            found += _leaves(value) if self.hides(name) else self._found(value)
        return Secrets(found)

    # ---- what is shown ------------------------------------------------------------------------------

    def _shown(self, value: Any, secrets: Secrets, budget: _Budget, depth: int = 0) -> Any:
        budget.left -= 1
        if isinstance(value, str):
            return secrets.hide(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = _number(value)
            return HIDDEN if secrets.hide(text) != text else value
        if not isinstance(value, Mapping | list | tuple):
            return value
        if depth >= _DEEPEST or budget.left < 0:
            return DEEPER
        if isinstance(value, Mapping):
            named = self._names_a_secret(value)
            shown = {}
            for key, item in value.items():
                if budget.left <= 0:
                    shown[DEEPER] = DEEPER
                    break
                hidden = self.hides(key) or (named and key not in _NAMES)
                shown[secrets.hide(str(key))] = HIDDEN if hidden else self._shown(item, secrets, budget, depth + 1)
            return shown
        if self._is_pair(value):
            return [value[0], HIDDEN]
        items: list[Any] = []
        for item in value:
            if budget.left <= 0:
                items.append(DEEPER)
                break
            items.append(self._shown(item, secrets, budget, depth + 1))
        return items

    # ---- what is hidden -----------------------------------------------------------------------------

    def _found(self, value: Any) -> Iterator[str]:
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, Mapping):
                named = self._names_a_secret(item)
                for key, inner in item.items():
                    if self.hides(key) or (named and key not in _NAMES):
                        yield from _leaves(inner)
                    else:
                        stack.append(inner)
            elif isinstance(item, list | tuple):
                if self._is_pair(item):
                    yield from _leaves(item[1])
                else:
                    stack += [each for each in item if type(each) not in _NAMELESS]
            elif isinstance(item, str) and len(item) <= _LONGEST_TEXT:
                yield from self._in_text(item)
                if item.lstrip()[:1] in ("{", "["):
                    stack += _json(item)

    def _in_text(self, text: str) -> Iterator[str]:
        # A search looks through thousands of long texts, most of which have none of this.
        if "://" in text:
            yield from _URL_PASSWORD.findall(text)
        yield from _credentials(text)
        if "=" in text or ":" in text:
            for name, value in _ASSIGNED.findall(text):
                if self.hides(name) and value.lower() not in _SCHEMES:
                    yield value

    def _names_a_secret(self, value: Mapping[Any, Any]) -> bool:
        """Whether it is like `{"name": "Authorization", "value": ...}`."""
        return any(isinstance(value.get(name), str) and self.hides(value[name]) for name in _NAMES)

    def _is_pair(self, value: list[Any] | tuple[Any, ...]) -> bool:
        return len(value) == 2 and isinstance(value[0], str) and self.hides(value[0])


@cache
def redaction() -> Redaction:
    """The redaction that the settings ask for."""
    return Redaction(tuple(_plain(name) for name in options().redact))


def _plain(name: str) -> str:
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
    return (name if name.isalnum() else "".join(filter(str.isalnum, name))).casefold()


def _leaves(value: Any) -> Iterator[str]:
    """Every text, number and key in a hidden value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack.extend(item.values())
            stack.extend(item)
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, str):
            yield item
            # What follows "Bearer" may stand in a text without it; and a secret may be a list of them, as JSON.
            yield from _credentials(item)
            if item.lstrip()[:1] in ("{", "[") and len(item) <= _LONGEST_TEXT:
                stack += _json(item)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield from {_number(item), *_other_numbers(item)}


def _credentials(text: str) -> Iterator[str]:
    """What follows the name of a scheme, as in `Bearer ...`."""
    folded = text.casefold()
    if not any(scheme in folded for scheme in _SCHEMES):
        return iter(())
    return (value for value in _SCHEME.findall(text) if value.lower() not in _SCHEMES)


def _json(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return []


def _number(value: float) -> str:
    try:
        return str(value)
    except ValueError:  # of more digits than Python writes
        return ""


def _other_numbers(value: float) -> set[str]:
    """How else a number may stand in a text: with an exponent, without one, with separators."""
    try:
        return {repr(float(value)), f"{value:,}", f"{value:.2f}", f"{value:g}"}
    except (OverflowError, ValueError):
        return set()


def _parts(payload: Any) -> tuple[list[Any], dict[str, Any]]:
    """Both halves of a payload, whatever was stored there."""
    if not isinstance(payload, Mapping):
        return ([] if payload is None else [payload]), {}
    args, kwargs = payload.get("args"), payload.get("kwargs")
    return (list(args) if isinstance(args, list | tuple) else []), (dict(kwargs) if isinstance(kwargs, Mapping) else {})


def _named(task_path: str, args: list[Any]) -> list[tuple[str, Any]]:
    names = _parameters(task_path)
    return [(names[n] if n < len(names) else str(n), value) for n, value in enumerate(args)]


def _parameters(task_path: str) -> tuple[str, ...]:
    """The names of a task's positional parameters; none if it cannot be imported here."""
    task = tasks.look(task_path).task
    return _parameters_of(task) if task is not None else ()


@lru_cache(maxsize=1024)
def _parameters_of(task: Any) -> tuple[str, ...]:
    try:
        parameters = list(inspect.signature(task.func).parameters.values())
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return tuple(names[1:] if task.takes_context else names)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        redaction.cache_clear()


setting_changed.connect(_forget, dispatch_uid="dj_queue_admin.redaction")
