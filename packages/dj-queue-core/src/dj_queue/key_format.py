"""Concurrency keys that are format strings: what they cost is bounded, whatever the arguments are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any

# A width or precision of more digits: {0:1000000000} would be a gigabyte of spaces.
_WIDE = re.compile(r"\d{4,}")
_LONGEST = 255
_PLAIN_NAME = re.compile(r"\w+")


def resolve(key: str, arguments: Mapping[str, Any]) -> str:
    """Put the arguments into a key. Raises whatever a format string may raise, and `ValueError` for wide ones."""
    return key.format(**arguments) if _plain(key) else _Bounded().vformat(key, (), arguments)


@lru_cache(maxsize=1024)
def _plain(key: str) -> bool:
    """Whether it does no more than name arguments."""
    fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(key) if name is not None]
    return all(_PLAIN_NAME.fullmatch(name) and not spec and not conversion for name, spec, conversion in fields)


class _Bounded(Formatter):
    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # Arguments are plain JSON: their items may be named, and no attribute of theirs says who they are.
        if "._" in field_name:
            raise ValueError(f"the field {field_name[:80]!r} names a private attribute")
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        # Expanded: a width may itself be an argument.
        if len(format_spec) > _LONGEST or _WIDE.search(format_spec):
            raise ValueError("a width or precision of more than three digits")
        text: str = super().format_field(value, format_spec)
        return text
