"""Text with nothing invisible in it: control characters, direction marks and lone surrogates are written out."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

LONGEST: Final = 20_000  # characters of one value on a page

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
# As UTF-8: controls, but for those of plain lines; lines' and paragraphs' ends; what turns the direction of text.
_MISLEADING = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


def visible(text: str, *, longest: int = LONGEST, lines: bool = True) -> str:
    """A text for people, cut off when very long; on one line, unless its line breaks may stay."""
    kept = text[:longest]
    if not kept.isascii() or not kept.isprintable():
        kept = "".join(_written(character, lines) for character in kept)
    left = len(text) - longest
    if left <= 0:
        return kept
    return f"{kept}\n… {left:,} more characters" if lines else f"{kept}…"


def page(content: bytes) -> bytes:
    """A whole page, whatever a stored text put into it. Marks that languages need stay."""
    return _MISLEADING.sub(lambda found: _written(found[0].decode(), lines=False).encode(), content)


def _written(character: str, lines: bool) -> str:
    if lines and character in "\n\t":
        return character
    if unicodedata.category(character) not in _INVISIBLE:
        return character
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"
