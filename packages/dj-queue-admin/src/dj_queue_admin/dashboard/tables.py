"""Tables that are sorted and paged by the address: `?queues_sort=-ready.name&queues_page=2`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Page, Paginator
from django.http import QueryDict


@dataclass(frozen=True)
class Column:
    key: str
    label: str
    # The value to sort by; None where there is none to sort by.
    value: Callable[[Any], Any] | None = None
    numeric: bool = False
    # Whether a first click sorts the largest first.
    largest_first: bool = False


@dataclass(frozen=True)
class Heading:
    """A column as it stands in one page: how it is sorted, and the address that sorts by it."""

    column: Column
    order: str  # ascending, descending or none
    address: str | None


class Table:
    """Rows in the order that the address asks for, one page of them."""

    def __init__(
        self, prefix: str, columns: Sequence[Column], rows: Sequence[Any], *, size: int, query: QueryDict
    ) -> None:
        self.columns = columns
        self._prefix = prefix
        self._query = query
        self._sort = parse_sort(query.get(f"{prefix}sort", ""), [each.key for each in columns if each.value])
        self.page: Page[Any] = Paginator(self._sorted(rows), size).get_page(query.get(f"{prefix}page"))

    @property
    def headings(self) -> list[Heading]:
        return [
            Heading(
                column,
                order_of(column.key, self._sort),
                sort_address(self._query, self._prefix, column, self._sort) if column.value else None,
            )
            for column in self.columns
        ]

    @property
    def pages(self) -> Pages:
        return Pages(self.page, self._query, self._prefix)

    def _sorted(self, rows: Sequence[Any]) -> Sequence[Any]:
        values = {column.key: column.value for column in self.columns}
        # Sorting is stable: by the last key first.
        for key, descending in reversed(self._sort):
            value = values[key]
            assert value is not None
            known = [row for row in rows if value(row) is not None]
            known.sort(key=value, reverse=descending)
            rows = [*known, *(row for row in rows if value(row) is None)]
        return rows


class Pages:
    """Where one page of a table stands, and the addresses of the others."""

    def __init__(self, page: Page[Any], query: QueryDict, prefix: str) -> None:
        self._page = page
        self._query = query
        self._prefix = prefix

    @property
    def needed(self) -> bool:
        return self._page.has_other_pages()

    @property
    def first(self) -> int:
        return self._page.start_index()

    @property
    def last(self) -> int:
        return self._page.end_index()

    @property
    def count(self) -> int:
        return self._page.paginator.count

    @property
    def previous(self) -> str | None:
        return self._to(self._page.number - 1) if self._page.has_previous() else None

    @property
    def next(self) -> str | None:
        return self._to(self._page.number + 1) if self._page.has_next() else None

    def _to(self, number: int) -> str:
        return changed(self._query, {f"{self._prefix}page": str(number)})


type Sort = list[tuple[str, bool]]


def parse_sort(text: str, known: Sequence[str]) -> Sort:
    """Keys and whether each is descending; what is not known is left out."""
    found: Sort = []
    for part in text.split("."):
        key = part.removeprefix("-")
        if key in known and key not in dict(found):
            found.append((key, part.startswith("-")))
    return found


def order_of(key: str, sort: Sort) -> str:
    if not sort or sort[0][0] != key:
        return "none"
    return "descending" if sort[0][1] else "ascending"


def sort_address(query: QueryDict, prefix: str, column: Column, sort: Sort) -> str:
    """Sort by this column first, the other way round if it is first already, and then as before."""
    order = order_of(column.key, sort)
    descending = column.largest_first if order == "none" else order == "ascending"
    keys = [f"-{column.key}" if descending else column.key]
    keys += [f"-{key}" if down else key for key, down in sort if key != column.key][:2]
    return changed(query, {f"{prefix}sort": ".".join(keys), f"{prefix}page": None})


def changed(query: QueryDict, changes: dict[str, str | None]) -> str:
    """The address of the same page with some parameters changed."""
    copy = query.copy()
    for key, value in changes.items():
        if value is None:
            copy.pop(key, None)
        else:
            copy[key] = value
    return f"?{copy.urlencode()}"
