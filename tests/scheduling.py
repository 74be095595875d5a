"""Which process of pytest-xdist runs which test, so that none is left with a long file when the others are done."""

from collections import Counter
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# The longest come first. For most of these a million rows are stored, once: they stay in one process.
_LONG = (
    "tests/admin/test_cost.py",
    "tests/admin/records/test_cost.py",
    "tests/test_plans.py",
    "tests/monitoring/test_plans.py",
    "tests/semantics/test_million.py",
    "tests/semantics/test_properties.py",
    "tests/test_history.py",
)
# Tests here wait for processes that they start, and share nothing: each goes where there is room, and they come last.
_APART = ("tests/connections/", "tests/embedding/", "tests/runtime/", "tests/test_examples.py", "tests/test_readme.py")
# A server of the file's own.
_TOGETHER = ("tests/runtime/test_outage.py",)


class Scheduling(LoadScopeScheduling):
    """A file goes to one process, but for tests that start processes of their own."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if _is_apart(file) else file


def make(config: pytest.Config, log: Any) -> Scheduling:
    config.option.loadscopereorder = False  # the order is that of `sort`
    return Scheduling(config, log)


def sort(items: list[pytest.Item]) -> None:
    files = Counter(item.nodeid.partition("::")[0] for item in items)

    def rank(item: pytest.Item) -> tuple[int, int]:
        file = item.nodeid.partition("::")[0]
        if file in _LONG:
            return 0, _LONG.index(file)
        return (2, 0) if _is_apart(file) else (1, -files[file])

    items.sort(key=rank)


def _is_apart(file: str) -> bool:
    return file.startswith(_APART) and file not in _TOGETHER
