"""Reads a YAML file. Whatever is in it, this ends within a second: with plain values, or with what is wrong."""

import os
import stat
from typing import Any

from dj_queue.config.problems import Mistakes, Place, shown

# Far above any real configuration, and read in a fraction of a second.
_MOST_BYTES = 128 * 1024
_MOST_VALUES = 10_000  # with every alias written out
_DEEPEST = 50
_SHORT = 8 * 1024
# A number or a date that takes more characters is none; reading it as one may take minutes.
_LONGEST_SCALAR = 100


def read_yaml(path: str, source: Place, place: Place, mistakes: Mistakes) -> Any:
    """What the file says; None, and why in `mistakes`, if it cannot be used.

    `source` is what named the file, and `place` the file itself.
    """
    import yaml  # lazy: most processes read no file

    try:
        text = _bytes_of(path)
    except (OSError, ValueError) as error:  # a ValueError for a path with NUL in it
        why = getattr(error, "strerror", None) or str(error)
        mistakes.add(source, "a readable YAML file", path, why)
        return None
    if len(text) > _MOST_BYTES:
        mistakes.say(place, f"expected a YAML file of at most {_MOST_BYTES} bytes, got a larger one")
        return None
    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        mistakes.say(place, f"expected valid YAML, but {where}{error.problem or error.context}")
    except Exception as error:
        # Undecodable bytes, dates like 2024-13-45, unhashable keys: the parser's and Python's own words.
        mistakes.say(place, f"expected valid YAML, but {' '.join(str(error).split()) or type(error).__name__}")
    return None


def _bytes_of(path: str) -> bytes:
    # Without waiting: opening a pipe without a writer would never return.
    flags = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) and path != os.devnull:
            raise OSError(None, "not a regular file")
        return file.read(_MOST_BYTES + 1)


def _load(text: bytes) -> Any:
    import yaml

    # Both read the same. The one in C is ten times faster, says less of what is wrong, and is not always installed.
    loader_class: Any = yaml.SafeLoader if len(text) <= _SHORT else getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _require_small(yaml.parse(text, Loader=loader_class))
    loader = loader_class(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_plain(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_small(events: Any) -> None:
    """Refuse, before anything is built, what nests too deeply, contains itself, or grows by its aliases."""
    import yaml

    # For each open collection: its anchor, and how many values it has so far with all aliases written out.
    opened: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    documents = 0
    for event in events:
        anchor, size = getattr(event, "anchor", None), 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise _wrong("but found another document", event)
        if isinstance(event, yaml.AliasEvent):
            if anchor in (name for name, _ in opened):
                raise _wrong(f"*{anchor} contains itself", event)
            size = sizes.get(anchor or "", 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
            if len(opened) > _DEEPEST:
                raise _wrong(f"it nests more than {_DEEPEST} levels deep", event)
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            sizes[anchor] = size
        if opened:
            name, before = opened[-1]
            size += before
            opened[-1] = (name, size)
        if size > _MOST_VALUES:
            raise _wrong(f"it has more than {_MOST_VALUES} values, with all aliases written out", event)


def _require_plain(root: Any) -> None:
    """Refuse a key that stands twice in one mapping, of which only the last would count, and endless numbers."""
    import yaml

    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[tuple[str, str]] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in keys:
                        raise _wrong(f"the key {shown(key.value)} stands twice in one mapping", key)
                    keys.add((key.tag, key.value))
                left += key, value
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
        elif not node.tag.endswith((":str", ":binary")) and len(node.value) > _LONGEST_SCALAR:
            kind = node.tag.rpartition(":")[2]
            raise _wrong(f"a value that reads as {kind} has {len(node.value)} characters", node)


def _wrong(problem: str, where: Any) -> Exception:
    import yaml

    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
