"""The setting `DJ_QUEUE_PROMETHEUS`: whether and where a runtime serves what its workers count."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from dj_queue.config import managed_aliases
from dj_queue.config.problems import Mistakes, Place

SETTING = "DJ_QUEUE_PROMETHEUS"
_KNOWN = ("port", "address", "most_series")


@dataclass(frozen=True, slots=True)
class RuntimeMetrics:
    # The port of each backend alias whose runtime listens; 0 takes a free one.
    ports: Mapping[str, int] = field(default_factory=dict)
    address: str = "127.0.0.1"
    # The most pairs of queue and task that a worker counts apart. The rest is queue "other", task "other".
    most_series: int = 100


def runtime_metrics() -> RuntimeMetrics:
    """Read the setting. Raises `ImproperlyConfigured` with all its mistakes."""
    given = getattr(settings, SETTING, None)
    if given is None:
        return RuntimeMetrics()
    mistakes = Mistakes()
    place = Place(SETTING)
    values: dict[str, Any] = {}
    if not isinstance(given, Mapping):
        mistakes.add(place, "a mapping of options, or None", given)
        given = {}
    for key, value in given.items():
        if key not in _KNOWN:
            mistakes.unknown(place.at(key), value, _KNOWN)
        elif key == "port":
            values["ports"] = _ports(value, place.at(key), mistakes)
        elif key == "address":
            values[key] = _address(value, place.at(key), mistakes)
        else:
            values[key] = _whole(value, place.at(key), mistakes, 1, 10_000)
    if len(mistakes):
        lines = "".join(f"\n  {line}" for line in mistakes.lines)
        raise ImproperlyConfigured(
            f"dj-queue-prometheus cannot use its setting:{lines}\n"
            "Correct each line above, then verify with `python manage.py check`."
        )
    return RuntimeMetrics(**values)


def _ports(value: Any, place: Place, mistakes: Mistakes) -> dict[str, int]:
    aliases = managed_aliases()
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(aliases, _whole(value, place, mistakes, 0, 65535))
    for alias in value:
        if alias not in aliases:
            mistakes.unknown(place.at(alias), value[alias], aliases)
    return {
        alias: _whole(port, place.at(alias), mistakes, 0, 65535) for alias, port in value.items() if alias in aliases
    }


def _whole(value: Any, place: Place, mistakes: Mistakes, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        mistakes.add(place, f"a whole number from {least} to {most}", value)
        return least
    return value


def _address(value: Any, place: Place, mistakes: Mistakes) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        mistakes.add(place, "an IP address such as '127.0.0.1', '0.0.0.0' or '::'", value)
        return ""
