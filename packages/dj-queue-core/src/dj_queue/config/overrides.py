"""Reads what code gives instead of a command line."""

import os
from collections.abc import Mapping
from typing import Any

from dj_queue.config.model import Overrides
from dj_queue.config.options import OPTIONS
from dj_queue.config.problems import Mistakes, Place

PLACE = Place("cli_overrides")

# The command's flags, as its parser names them, and the field that each fills.
_FLAGS = {
    "config": "config_file",
    "config_file": "config_file",
    "only_work": "only_work",
    "only_dispatch": "only_dispatch",
    "skip_recurring": "skip_recurring",
}
# What the parser says for a flag that was not given.
_UNSET = ("mode", "skip_recurring", "config", "config_file")


def read_overrides(given: Overrides | Mapping[str, Any] | None, mistakes: Mistakes) -> Overrides:
    """A mapping of options, and of the command's flags by their names: `{"mode": "async", "only_work": True}`."""
    if given is None:
        return Overrides()
    if isinstance(given, Overrides):
        return given
    if not isinstance(given, Mapping):
        mistakes.add(PLACE, "a mapping of options and flags", given)
        return Overrides()
    flags: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, value in given.items():
        if value is None and key in _UNSET:
            continue
        if key in OPTIONS:
            options[key] = value
        elif key not in _FLAGS:
            mistakes.unknown(PLACE.at(key), value, (*OPTIONS, *_FLAGS))
        elif _FLAGS[key] == "config_file":
            if isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str):
                flags["config_file"] = os.fspath(value)
            else:
                mistakes.add(PLACE.at(key), "the path of a YAML file, or None", value)
        elif isinstance(value, bool):
            flags[_FLAGS[key]] = value
        else:
            mistakes.add(PLACE.at(key), "True or False", value)
    return Overrides(**flags, options=options)
