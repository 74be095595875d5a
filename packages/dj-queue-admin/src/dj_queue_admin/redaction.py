"""Hides values by the names they go under, wherever stored data is shown or searched.

A name is hidden if it contains one of the option `redact`, whatever its case and however its words are
joined: "token" hides `access_token`, `AccessToken` and `X-CSRF-Token`. Positional arguments go under the
names of the task's parameters, as long as the task can be imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from django.core.signals import setting_changed

from dj_queue.exceptions import TaskPathError
from dj_queue.operations import results
from dj_queue_admin.options import SETTING, options

HIDDEN: Final = "••••••"
DEEPER: Final = "…"

_DEEPEST = 40
_SHORTEST_SECRET = 4


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

    def of(self, value: Any, *, depth: int = 0) -> Any:
        """A copy of plain JSON data without hidden values, cut off where it is nested too deeply to read."""
        if not isinstance(value, Mapping | list | tuple):
            return value
        if depth >= _DEEPEST:
            return DEEPER
        if isinstance(value, Mapping):
            return {key: HIDDEN if self.hides(key) else self.of(item, depth=depth + 1) for key, item in value.items()}
        return [self.of(item, depth=depth + 1) for item in value]

    def call(self, task_path: str, payload: Any) -> list[Argument]:
        """The arguments of a stored call, by name where that is known."""
        args, kwargs = _parts(payload)
        return [
            Argument(name, HIDDEN if self.hides(name) else self.of(value)) for name, value in _named(task_path, args)
        ] + [Argument(name, HIDDEN if self.hides(name) else self.of(value), True) for name, value in kwargs.items()]

    def secrets(self, task_path: str, payload: Any) -> list[str]:
        """The hidden values of a call, as they may turn up in texts, the longest first."""
        args, kwargs = _parts(payload)
        found: set[str] = set()
        for name, value in (*_named(task_path, args), *kwargs.items()):
            found.update(_leaves(value) if self.hides(name) else self._hidden(value))
        return sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)

    def _hidden(self, value: Any) -> Iterator[str]:
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, Mapping):
                for key, inner in item.items():
                    if self.hides(key):
                        yield from _leaves(inner)
                    else:
                        stack.append(inner)
            elif isinstance(item, list | tuple):
                stack.extend(item)


def scrub(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret in it hidden: what a task was given may stand in its error."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


@cache
def redaction() -> Redaction:
    """The redaction that the settings ask for."""
    return Redaction(tuple(_plain(name) for name in options().redact))


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _leaves(value: Any) -> Iterator[str]:
    """Every text and number in a hidden value."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, str) or (isinstance(item, int | float) and not isinstance(item, bool)):
            yield str(item)


def _parts(payload: Any) -> tuple[list[Any], dict[str, Any]]:
    """Both halves of a payload, whatever was stored there."""
    if not isinstance(payload, Mapping):
        return ([] if payload is None else [payload]), {}
    args, kwargs = payload.get("args"), payload.get("kwargs")
    return (list(args) if isinstance(args, list | tuple) else []), (dict(kwargs) if isinstance(kwargs, Mapping) else {})


def _named(task_path: str, args: list[Any]) -> list[tuple[str, Any]]:
    names = _parameters(task_path)
    return [(names[n] if n < len(names) else str(n), value) for n, value in enumerate(args)]


@lru_cache(maxsize=1024)
def _parameters(task_path: str) -> tuple[str, ...]:
    """The names of a task's positional parameters; none if it cannot be imported here."""
    try:
        task = results.resolve(task_path)
    except TaskPathError:
        return ()
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
