"""The configuration this process uses."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from dj_queue.config import sources
from dj_queue.config.files import read_yaml
from dj_queue.config.model import LEAST_BEATS, BackendConfig, Overrides
from dj_queue.config.options import Given, merge, read_values
from dj_queue.config.overrides import read_overrides
from dj_queue.config.problems import Mistakes, Place
from dj_queue.config.readers import known_databases

# Everything read so far. Replaced whole, never emptied: a thread that is still loading what has
# just become stale then fills the old one.
_configs: dict[str, BackendConfig] = {}
_activated: dict[str, BackendConfig] = {}
_databases: "_Databases | None" = None
_shared_file: str | None = None
_selected: str | None = None  # by the command; see `sources.usual_alias` for the others


class _Databases(NamedTuple):
    queues: frozenset[str]
    listeners: frozenset[str]
    usual: str | None


def load_config(
    alias: str = "default",
    *,
    tasks: Mapping[str, Any] | None = None,
    overrides: Overrides | Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    selected: bool = True,
) -> BackendConfig:
    """Read the configuration of one alias afresh.

    Each top-level option comes whole from the first source that has it: command line,
    environment, YAML file, settings, defaults. A YAML file without `backends:` counts for the alias
    that is `selected` alone. Raises `ImproperlyConfigured` with all mistakes.
    """
    sources.require_managed(alias, tasks)
    mistakes = Mistakes()
    overrides = read_overrides(overrides, mistakes)
    env = os.environ if env is None else env
    found = sources.read_sources(alias, tasks, overrides, env, mistakes, selected=selected)
    given = merge(found.layers, mistakes)
    values = read_values(given, mistakes)
    config = BackendConfig(
        alias,
        **values,
        skip_recurring=found.skip_recurring,
        config_file=found.shared_file,
    )
    config = _narrowed(config, overrides, mistakes)
    _check_liveness(config, given, values, mistakes)
    _check_something_starts(config, mistakes)
    mistakes.raise_any(alias)
    return _without_async_processes(config)


def backend_config(alias: str = "default") -> BackendConfig:
    """The configuration of an alias, read once a process. Every enqueue asks here."""
    configs = _configs
    config = configs.get(alias)
    if config is not None:
        return config
    return configs.setdefault(alias, process_config(alias))


def process_config(alias: str, *, mode: str | None = None) -> BackendConfig:
    """Read the configuration of an alias afresh, as this process has it: its file, its selected alias.

    Raises `ImproperlyConfigured` with all mistakes.
    """
    overrides = Overrides(mode=mode, config_file=_shared_file)
    return load_config(alias, overrides=overrides, selected=_is_selected(alias))


def flat_file() -> str | None:
    """The file of DJ_QUEUE_CONFIG, if it has options for one alias, and so does not say for which."""
    path = os.environ.get("DJ_QUEUE_CONFIG")
    if not path:
        return None
    place = Place(path, yaml=True)
    content = read_yaml(path, place, place, Mistakes())
    return path if isinstance(content, Mapping) and content and "backends" not in content else None


def activate(config: BackendConfig) -> None:
    """Let `config` govern this process, as the command does with what its flags say."""
    global _activated, _configs, _databases, _selected, _shared_file
    _shared_file = config.config_file or _shared_file
    _selected = config.alias
    _activated = {**_activated, config.alias: config}
    _configs = dict(_activated)  # The other aliases may now read another file.
    _databases = None


def reset() -> None:
    """Forget everything that was read or activated."""
    global _activated, _configs, _databases, _selected, _shared_file
    _selected = None
    _activated = {}
    _configs = {}
    _databases = None
    _shared_file = None


def database_aliases() -> frozenset[str]:
    """The databases that dj-queue's aliases name.

    The router asks, for every alias at once: what is wrong elsewhere in a configuration must not
    stop the tables of the others.
    """
    return _named_databases().queues


def usual_database() -> str | None:
    """Where a query of the app goes that names no database: to the queue of `default`, if that is dj-queue's."""
    return _named_databases().usual


def migrated_aliases() -> frozenset[str]:
    """The aliases through which the queue's tables may be made: those above, and those that listeners use.

    The latter lead to the same databases. Django would note a migration there as applied, and not apply it.
    """
    return _named_databases().queues | _named_databases().listeners


def _named_databases() -> "_Databases":
    global _databases
    if _databases is None:
        named = {alias: _aliases_of(alias) for alias in sources.managed_aliases()}
        known = known_databases()
        queues = {alias: queue for alias, (queue, _) in named.items() if queue in known}
        _databases = _Databases(
            frozenset(queues.values()),
            frozenset(listener for _, listener in named.values() if listener in known),
            queues.get("default") or min(queues.values(), default=None),
        )
    return _databases


def _aliases_of(alias: str) -> tuple[Any, Any]:
    if alias in _configs:
        return _configs[alias].database_alias, _configs[alias].listen_database_alias
    ignored = Mistakes()
    try:
        overrides = Overrides(config_file=_shared_file)
        found = sources.read_sources(alias, None, overrides, os.environ, ignored, selected=_is_selected(alias))
        layers = found.layers
    except ImproperlyConfigured:
        layers = (sources.settings_layer(alias, None, ignored),)
    given = merge(layers, ignored)
    queue, listener = given.get("database_alias"), given.get("listen_database_alias")
    return queue.value if queue else "default", listener.value if listener else None


def _is_selected(alias: str) -> bool:
    return alias == (_selected or sources.usual_alias())


def _narrowed(config: BackendConfig, overrides: Overrides, mistakes: Mistakes) -> BackendConfig:
    if overrides.only_work and overrides.only_dispatch:
        place = Place("--only-work --only-dispatch")
        mistakes.say(place, "expected at most one of the two, got both")
        return config
    if overrides.only_work:
        return replace(config, dispatchers=(), scheduler=None)
    if overrides.only_dispatch:
        return replace(config, workers=(), scheduler=None)
    return config


def _check_liveness(
    config: BackendConfig,
    given: Mapping[str, Given],
    values: Mapping[str, Any],
    mistakes: Mistakes,
) -> None:
    heartbeat, threshold = "process_heartbeat_interval", "process_alive_threshold"
    if any(key in given and key not in values for key in (heartbeat, threshold)):
        return  # One of them is wrong in itself.
    if config.process_alive_threshold >= config.process_heartbeat_interval * LEAST_BEATS:
        return
    place = sources.options_place(config.alias).at(threshold)
    if threshold in given:
        place = given[threshold].place
    expected = f"at least {LEAST_BEATS:g} times {heartbeat}, which is {config.process_heartbeat_interval}"
    note = "a runner would let go of its jobs between two heartbeats"
    mistakes.add(place, expected, config.process_alive_threshold, note)


def _check_something_starts(config: BackendConfig, mistakes: Mistakes) -> None:
    if config.workers or config.dispatchers or config.scheduler_needed:
        return
    place = sources.options_place(config.alias)
    mistakes.say(place, "expected at least one worker, dispatcher or scheduler, got none of them")


def _without_async_processes(config: BackendConfig) -> BackendConfig:
    if config.mode != "async" or all(worker.processes == 1 for worker in config.workers):
        return config
    warnings.warn(
        f"The dj-queue alias {config.alias!r} runs in async mode, in one process: every worker's "
        "`processes` counts as 1. Raise `threads`, or use the mode 'fork'.",
        UserWarning,
        stacklevel=3,
    )
    return replace(config, workers=tuple(replace(w, processes=1) for w in config.workers))


def _forget_changed_settings(*, setting: str, **kwargs: Any) -> None:
    if setting in ("TASKS", "DATABASES"):
        reset()


setting_changed.connect(_forget_changed_settings, dispatch_uid="dj_queue.config")
