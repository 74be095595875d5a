"""Where values come from: settings, a YAML file, the environment, the command line."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from dj_queue.config.files import read_yaml
from dj_queue.config.model import Overrides
from dj_queue.config.options import Given, Layer
from dj_queue.config.overrides import PLACE as OVERRIDES
from dj_queue.config.problems import Mistakes, Place, listed, nearest, shown

BACKEND_PATH = "dj_queue.backend.DjQueueBackend"

_IMPLICIT_TASKS = {"default": {"BACKEND": BACKEND_PATH}}

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class Sources(NamedTuple):
    """What every source says about one alias. Later layers beat earlier ones."""

    layers: tuple[Layer, ...]
    skip_recurring: bool
    # The absolute path of a `--config` file that speaks for other aliases too.
    shared_file: str | None


def managed_aliases(tasks: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The aliases of `TASKS` that are dj-queue's: those whose BACKEND is exactly its path."""
    entries = _entries(tasks)
    return tuple(alias for alias in entries if _backend(entries[alias]) == BACKEND_PATH)


def usual_alias() -> str | None:
    """The alias that a process selects which was given none: `default`, if that is dj-queue's, or the only one."""
    managed = managed_aliases()
    if "default" in managed:
        return "default"
    return managed[0] if len(managed) == 1 else None


def require_managed(alias: str, tasks: Mapping[str, Any] | None = None) -> None:
    entries = _entries(tasks)
    managed = managed_aliases(tasks)
    if alias in managed:
        return
    if alias in entries:
        problem = f"has the BACKEND {_backend(entries[alias])!r}, so it is not dj-queue's"
    else:
        problem = "does not exist"
    raise ImproperlyConfigured(
        f"{Place('TASKS', (alias,))} {problem}. The aliases dj-queue manages: {listed(managed)}. "
        f"Name one of them, or give this one the BACKEND {BACKEND_PATH!r}."
    )


def read_sources(
    alias: str,
    tasks: Mapping[str, Any] | None,
    overrides: Overrides,
    env: Mapping[str, str],
    mistakes: Mistakes,
    *,
    selected: bool,
) -> Sources:
    """Collect what is said about `alias`, unread. Raises at once if a file is unusable.

    A file without `backends:` speaks for the alias that is `selected`, and for no other.
    """
    from_file, shared_file = _file_layer(alias, _entries(tasks), overrides, env, mistakes, selected=selected)
    layers = (
        settings_layer(alias, tasks, mistakes),
        from_file,
        # An empty variable is what shells and compose files write for an unset one.
        _mode_layer(env.get("DJ_QUEUE_MODE") or None, "DJ_QUEUE_MODE"),
        _mode_layer(overrides.mode, "--mode"),
        _layer(overrides.options, OVERRIDES),
    )
    return Sources(layers, _skip_recurring(overrides, env, mistakes), shared_file)


def options_place(alias: str) -> Place:
    return Place("TASKS", (alias, "OPTIONS"))


def settings_layer(alias: str, tasks: Mapping[str, Any] | None, mistakes: Mistakes) -> Layer:
    options = _entries(tasks)[alias].get("OPTIONS", {})
    place = options_place(alias)
    if isinstance(options, Mapping):
        return _layer(options, place)
    mistakes.add(place, "a mapping of options", options)
    return {}


def _entries(tasks: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if tasks is None:
        # Django's default TASKS names its own immediate backend. That is not a project's choice.
        tasks = settings.TASKS if settings.is_overridden("TASKS") else {}  # type: ignore[misc]
    if not isinstance(tasks, Mapping):
        return {}
    return tasks or _IMPLICIT_TASKS


def _backend(entry: Any) -> Any:
    return entry.get("BACKEND") if isinstance(entry, Mapping) else None


def _layer(options: Mapping[Any, Any], place: Place) -> Layer:
    return {key: Given(value, place.at(key)) for key, value in options.items()}


def _mode_layer(mode: str | None, source: str) -> Layer:
    return {} if mode is None else {"mode": Given(mode, Place(source))}


def _skip_recurring(overrides: Overrides, env: Mapping[str, str], mistakes: Mistakes) -> bool:
    given = env.get("DJ_QUEUE_SKIP_RECURRING", "").strip()
    if overrides.skip_recurring is not None:
        return overrides.skip_recurring
    if not given:
        return False
    if given.lower() not in _TRUE + _FALSE:
        expected = f"{', '.join(_TRUE)} or {', '.join(_FALSE)}"
        mistakes.add(Place("DJ_QUEUE_SKIP_RECURRING"), expected, given)
    return given.lower() in _TRUE


def _file_layer(
    alias: str,
    entries: Mapping[str, Any],
    overrides: Overrides,
    env: Mapping[str, str],
    mistakes: Mistakes,
    *,
    selected: bool,
) -> tuple[Layer, str | None]:
    """What the YAML file says about `alias`, and the file if it governs other aliases too."""
    path = overrides.config_file or env.get("DJ_QUEUE_CONFIG")
    if not path:
        return {}, None
    place = Place(path, yaml=True)
    source = Place("--config" if overrides.config_file else "DJ_QUEUE_CONFIG")
    content = read_yaml(path, source, place, mistakes)
    mistakes.raise_any(alias)  # Without the file's values, nothing else can be judged.
    if content is None:
        return {}, None
    if not isinstance(content, Mapping):
        mistakes.add(place, "a mapping of options, or `backends:`, at the top", content)
        raise mistakes.error(alias)
    if "backends" not in content:
        return (_layer(content, place) if selected else {}), None
    if len(content) > 1:
        others = listed(key for key in content if key != "backends")
        mistakes.say(place.at("backends"), f"expected alone at the top, got it beside {others}")
        raise mistakes.error(alias)
    layer = _backends_layer(alias, entries, content["backends"], place, mistakes)
    return layer, os.path.abspath(path) if overrides.config_file else None


def _backends_layer(alias: str, entries: Mapping[str, Any], backends: Any, place: Place, mistakes: Mistakes) -> Layer:
    place = place.at("backends")
    if not isinstance(backends, Mapping):
        mistakes.add(place, "a mapping from aliases to options", backends)
        return {}
    for name in backends:
        if name not in entries and not mistakes.full:
            hint = nearest(name, entries) or f"TASKS has {listed(entries)}"
            mistakes.say(place.at(name), f"expected an alias of TASKS, got {shown(name)}; {hint}")
    options = backends.get(alias, {})
    if isinstance(options, Mapping):
        return _layer(options, place.at(alias))
    mistakes.add(place.at(alias), "a mapping of options", options)
    return {}
