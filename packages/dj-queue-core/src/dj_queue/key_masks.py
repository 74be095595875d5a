"""Concurrency keys for anybody's eyes: without the arguments that go under a name that is to be hidden.

A key does not tell what it was made of. Tasks that this process has imported do, where their key is a format string:
of `"login:{email}:{api_token}"`, what stands for `api_token` is hidden. What it cannot know: a key that a function
made, and one of a task that is not imported here.
"""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from string import Formatter
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.tasks import Task

HIDDEN: Final = "••••••"

# Names are compared without case and punctuation: "token" hides `access_token` and `AccessToken`.
SENSITIVE: Final = (
    "password",
    "pwd",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "access_key",
    "private_key",
    "authorization",
    "credential",
    "cookie",
    "csrf",
    "session",
    "card_number",
    "otp",
    "dsn",
    "cvv",
)

# Seconds until modules are looked through again, if none was imported meanwhile.
_LOOKED_FOR: Final = 60.0


class _Template(NamedTuple):
    pattern: re.Pattern[str]
    literals: int  # characters: the more, the surer that a key is of this template
    hides: bool


class _Known(NamedTuple):
    modules: int
    names: tuple[str, ...]
    until: float
    templates: tuple[_Template, ...]


_known: _Known | None = None


def masked(key: str) -> str:
    """The key without hidden arguments, as far as a task that is imported here says which parts they are."""
    return _masked(key, _templates())


def masked_by(key: str, task: Any) -> str:
    """The key of a job of this task, without the arguments that its format string says are hidden."""
    text = _format_of(task)
    return key if text is None else _masked(key, [_compiled(text, _words(names()))])


def _masked(key: str, templates: Iterable[_Template]) -> str:
    found = [(each, match) for each in templates if (match := each.pattern.fullmatch(key))]
    if not found:
        return key
    template, match = max(found, key=lambda one: (one[0].literals, one[0].hides))
    if not template.hides:
        return key
    for n in range(match.re.groups, 0, -1):
        key = key[: match.start(n)] + HIDDEN + key[match.end(n) :]
    return key


def names() -> tuple[str, ...]:
    """The names that hide what goes under them: those of `DJ_QUEUE_ADMIN`, else the usual ones."""
    given = getattr(settings, "DJ_QUEUE_ADMIN", None)
    chosen = given.get("redact") if isinstance(given, dict) else None
    if isinstance(chosen, list | tuple | set | frozenset) and all(isinstance(name, str) for name in chosen):
        return tuple(chosen)
    return SENSITIVE


def _templates() -> tuple[_Template, ...]:
    global _known
    state = (len(sys.modules), names())
    if _known is None or (_known.modules, _known.names) != state or time.monotonic() > _known.until:
        words = _words(state[1])
        found = tuple(dict.fromkeys(_compiled(text, words) for text in sorted(set(_formats()))))
        _known = _Known(*state, time.monotonic() + _LOOKED_FOR, found)
    return _known.templates


def _formats() -> Iterator[str]:
    """The format strings of every task at the top of a module."""
    for module in list(sys.modules.values()):
        for value in list(getattr(module, "__dict__", {}).values()):
            if isinstance(value, Task) and (text := _format_of(value)) is not None:
                yield text


def _format_of(task: Any) -> str | None:
    key = getattr(task, "concurrency_key", None) or getattr(task.func, "concurrency_key", None)
    return key if isinstance(key, str) else None


def _words(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(filter(None, map(_plain, given)))


@lru_cache(maxsize=1024)
def _compiled(text: str, words: tuple[str, ...]) -> _Template:
    try:
        parts = [(literal, field) for literal, field, _, _ in Formatter().parse(text)]
    except ValueError:
        parts = [(text, None)]
    hidden = [field is not None and any(word in _plain(field) for word in words) for _, field in parts]
    pattern = ""
    for n, (literal, field) in enumerate(parts):
        pattern += _bounded(parts, hidden, n) if n else re.escape(literal)
        if field is not None and hidden[n]:
            pattern += "(.*)"
        elif field is not None and n == len(parts) - 1:
            pattern += ".*"
    return _Template(re.compile(pattern, re.DOTALL), sum(len(literal) for literal, _ in parts), any(hidden))


def _bounded(parts: list[tuple[str, str | None]], hidden: list[bool], n: int) -> str:
    """A literal, with what stands for the field before it: as little as may be, and never tried again."""
    literal = re.escape(parts[n][0])
    if parts[n - 1][1] is None or hidden[n - 1]:
        return literal
    return f"(?>.*?{literal})" if literal else ""


def _plain(name: Iterable[str] | str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", str(name)))).casefold()
