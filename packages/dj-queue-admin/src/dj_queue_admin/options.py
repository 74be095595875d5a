"""The setting `DJ_QUEUE_ADMIN`: read once, refused with every mistake named, then frozen.

redact   names whose values are never shown: `DJ_QUEUE_ADMIN = {"redact": [*REDACT, "iban"]}`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from dj_queue.config.problems import Mistakes, Place
from dj_queue.key_masks import SENSITIVE

SETTING = "DJ_QUEUE_ADMIN"

REDACT = SENSITIVE


@dataclass(frozen=True, slots=True)
class Options:
    redact: tuple[str, ...] = REDACT


@cache
def options() -> Options:
    """The options as the settings give them. Raises `ImproperlyConfigured` with all mistakes."""
    given = getattr(settings, SETTING, {})
    mistakes, place = Mistakes(), Place(SETTING)
    values = _read(given, place, mistakes)
    mistakes.raise_any(SETTING)
    return Options(**values)


def check(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    """dj_queue_admin.E001: the setting has mistakes."""
    try:
        options()
    except ImproperlyConfigured as error:
        hint = "Until then, pages that show a job raise this error."
        return [Error(str(error), hint=hint, id="dj_queue_admin.E001")]
    return []


def _read(given: Any, place: Place, mistakes: Mistakes) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        mistakes.add(place, "a mapping of options", given)
        return {}
    values = {}
    for key, value in given.items():
        if key == "redact":
            values[key] = _names(value, place.at(key), mistakes)
        else:
            mistakes.unknown(place.at(key), value, ["redact"])
    return values


def _names(given: Any, place: Place, mistakes: Mistakes) -> tuple[str, ...]:
    if not isinstance(given, list | tuple | set | frozenset):
        mistakes.add(place, "a list of names", given)
        return ()
    for n, name in enumerate(given):
        if not isinstance(name, str) or not any(character.isalnum() for character in name):
            mistakes.add(place.at(n), "a name with a letter or a digit in it", name)
    return tuple(given)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        options.cache_clear()


setting_changed.connect(_forget, dispatch_uid="dj_queue_admin.options")
