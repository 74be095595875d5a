"""Hides known values in a text, however they are spelled there: quoted, escaped, percent or base64 encoded.

What it cannot know: a value that the text holds in part, reversed, hashed, compressed or encrypted.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from urllib.parse import quote, quote_plus

from dj_queue.key_masks import HIDDEN

__all__ = ["HIDDEN", "Secrets"]

# Shorter values are hidden only where they stand alone: a card's number of three digits is a part of many words.
_ALONE_BELOW = 4
_SHORTEST = 2
# Of a value that is longer, the text is looked through for its start.
_LONGEST = 2_000
# More of them in one call and a text is not looked through, but hidden whole.
_MOST = 500
# What dj_queue writes where it leaves out the middle of a long text: a value may be cut there.
_SEAM = re.compile(r"\n\[\.\.\. \d+ characters left out \.\.\.\]\n")
_SHORTEST_PIECE = 4


class Secrets:
    """The hidden values of one call."""

    def __init__(self, values: Iterable[str]) -> None:
        self.values = sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)

    def __bool__(self) -> bool:
        return bool(self.values)

    def hide(self, text: str) -> str:
        """The text without any of the values. Give it whole: what was cut off in a value is not recognised."""
        if not self.values or not text:
            return text
        if len(self.values) > _MOST:
            return HIDDEN
        return self._pattern.sub(HIDDEN, self._hide_at_seams(text))

    @cached_property
    def _spellings(self) -> list[str]:
        found = {spelled for value in self.values for spelled in _spellings(value[:_LONGEST])}
        # The longest first: one spelling may be a part of another.
        return sorted(found, key=len, reverse=True)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_expression, self._spellings)), re.IGNORECASE)

    def _hide_at_seams(self, text: str) -> str:
        for seam in reversed(list(_SEAM.finditer(text))):
            before, after = text[: seam.start()], text[seam.end() :]
            cut = max((_overlap(before, spelled) for spelled in self._spellings), default=0)
            skip = max((_overlap(spelled, after) for spelled in self._spellings), default=0)
            if cut or skip:
                before = before[: len(before) - cut] + (HIDDEN if cut else "")
                after = (HIDDEN if skip else "") + after[skip:]
                text = before + seam.group() + after
        return text


def _spellings(value: str) -> Iterator[str]:
    yield value
    if len(value) < _ALONE_BELOW:
        return
    # A pattern that ignores case knows letters that stay one letter: not "ß" as "SS".
    yield from (value.upper(), value.lower())
    encoded = value.encode("utf-8", "surrogatepass")
    ascii_json, unicode_json = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]
    yield from (ascii_json, unicode_json, json.dumps(ascii_json)[1:-1], json.dumps(unicode_json)[1:-1])
    # As repr() writes it, whichever quotes that chooses, and once more inside of another text.
    for written in (repr(value)[1:-1], repr(encoded)[2:-1], ascii(value)[1:-1]):
        twice = repr(written)[1:-1]
        yield from (written, written.replace("'", "\\'"), twice, twice.replace("'", "\\'"))
    yield from (value.replace("\\", "\\\\").replace('"', '\\"'), html.escape(value), " ".join(value.split()))
    yield from (quote(encoded, safe=""), quote(encoded), quote_plus(encoded), encoded.hex())
    for offset in range(3):
        for core in _base64_cores(encoded, offset):
            if len(core) >= _ALONE_BELOW:
                yield core


def _base64_cores(encoded: bytes, offset: int) -> Iterator[str]:
    """The part of a value's base64 that does not depend on its neighbours, `offset` bytes into a group of three."""
    first = (0, 2, 3)[offset]
    end = (offset + len(encoded)) * 8 // 6
    padded = b"\0" * offset + encoded
    yield base64.b64encode(padded).decode()[first:end]
    yield base64.urlsafe_b64encode(padded).decode()[first:end]


def _expression(spelled: str) -> str:
    # White space is collapsed on some pages, and wrapped in some messages.
    words = r"\s+".join(map(re.escape, spelled.split())) if spelled.split() else re.escape(spelled)
    return rf"(?<!\w){words}(?!\w)" if len(spelled) < _ALONE_BELOW else words


def _overlap(left: str, right: str) -> int:
    """How many characters the end of one has in common with the start of the other."""
    left, right = left[-_LONGEST:], right[:_LONGEST]
    for size in range(min(len(left), len(right)), _SHORTEST_PIECE - 1, -1):
        if left.endswith(right[:size]):
            return size
    return 0
