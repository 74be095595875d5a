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
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from django.core.signals import setting_changed

from dj_queue_admin import tasks
from dj_queue_admin.options import SETTING, options
from dj_queue_admin.secrets import HIDDEN, Secrets

DEEPER: Final = "…"

_DEEPEST = 40
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


@dataclass(frozen=True)
class Redaction:
    words: tuple[str, ...]

    def hides(self, name: object) -> bool:
        """Whether values under this name are hidden."""
        plain = _plain(str(name))
        return any(word in plain for word in self.words)

    def of(self, value: Any, secrets: Secrets | None = None) -> Any:
        """A copy of plain JSON data without hidden values, its own and those given; cut off where it nests deeply."""
        return self._shown(value, Secrets([*self._found(value), *(secrets.values if secrets else ())]), 0)

    def call(self, task_path: str, payload: Any) -> list[Argument]:
        """The arguments of a stored call, by name where that is known."""
        secrets = self.secrets(task_path, payload)
        args, kwargs = _parts(payload)
        return [
            Argument(name, HIDDEN if self.hides(name) else self._shown(value, secrets, 0))
            for name, value in _named(task_path, args)
        ] + [
            Argument(secrets.hide(name), HIDDEN if self.hides(name) else self._shown(value, secrets, 0), True)
            for name, value in kwargs.items()
        ]

    def secrets(self, task_path: str, payload: Any) -> Secrets:
        """The hidden values of a call, as they may turn up in texts."""
        args, kwargs = _parts(payload)
        found: list[str] = []
        for name, value in (*_named(task_path, args), *kwargs.items()):
            found += _leaves(value) if self.hides(name) else self._found(value)
        return Secrets(found)

    # ---- what is shown ------------------------------------------------------------------------------

    def _shown(self, value: Any, secrets: Secrets, depth: int) -> Any:
        if isinstance(value, str):
            return secrets.hide(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = _number(value)
            return HIDDEN if secrets.hide(text) != text else value
        if not isinstance(value, Mapping | list | tuple):
            return value
        if depth >= _DEEPEST:
            return DEEPER
        if isinstance(value, Mapping):
            named = self._names_a_secret(value)
            return {
                secrets.hide(str(key)): HIDDEN
                if self.hides(key) or (named and key not in _NAMES)
                else self._shown(item, secrets, depth + 1)
                for key, item in value.items()
            }
        if self._is_pair(value):
            return [value[0], HIDDEN]
        return [self._shown(item, secrets, depth + 1) for item in value]

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
                    stack.extend(item)
            elif isinstance(item, str) and len(item) <= _LONGEST_TEXT:
                yield from self._in_text(item)
                if item.lstrip()[:1] in ("{", "["):
                    stack += _json(item)

    def _in_text(self, text: str) -> Iterator[str]:
        yield from _URL_PASSWORD.findall(text)
        yield from _credentials(text)
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
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name))).casefold()


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
