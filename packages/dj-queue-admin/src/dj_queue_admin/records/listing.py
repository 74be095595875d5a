"""A list of rows in Django's own changelist: filtered by a selection, counted to a cap, never sorted by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import SEARCH_VAR, ChangeList
from django.core.paginator import InvalidPage, Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from dj_queue_admin import backends
from dj_queue_admin.records.selection import COUNTED, Count

if TYPE_CHECKING:
    from dj_queue_admin.records.record import RecordAdmin

    _Paginator = Paginator[Any]
else:  # Django's own class takes no parameter.
    _Paginator = Paginator


@dataclass(frozen=True)
class Found:
    """The rows of a list, in order, and what their readers should know about them."""

    rows: QuerySet[Any, Any] | list[Any]
    count: Count
    note: str = ""
    mistakes: tuple[str, ...] = ()


def count_up_to_cap(rows: QuerySet[Any, Any]) -> Count:
    number = rows.order_by()[: COUNTED + 1].count()
    return Count(min(number, COUNTED), number > COUNTED)


class CappedPaginator(_Paginator):
    """Pages of rows that were counted no further than a cap."""

    def __init__(self, rows: Any, per_page: int, total: Count) -> None:
        super().__init__(rows, per_page)
        self.total = total

    @property
    def count(self) -> int:
        return self.total.number


class Listing(ChangeList):
    """Django's changelist, with the rows that its model admin finds."""

    model_admin: RecordAdmin
    found: Found

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().__init__(request, *args, **kwargs)
        self.title = str(self.opts.verbose_name_plural).capitalize()

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        """Every row of the backend: what an action's selected ids are looked up in."""
        self.filter_specs: list[Any] = []
        self.has_filters = False
        self.has_active_filters = bool(set(self.params) - {backends.PARAMETER})
        self.clear_all_filters_qs = self.get_query_string(
            {backends.PARAMETER: self.params.get(backends.PARAMETER)},
            [name for name in self.params if name != backends.PARAMETER],
        )
        return self.root_queryset

    def get_results(self, request: HttpRequest) -> None:
        # As it came: Django drops a search that it cannot use, and would list everything.
        self.query = request.GET.get(SEARCH_VAR, "")
        self.found = found = self.model_admin.find(request, self.query)
        for mistake in found.mistakes:
            messages.error(request, f"{mistake}. Nothing is listed: correct the filter.")
        self.paginator = CappedPaginator(found.rows, self.list_per_page, found.count)
        try:
            rows = list(self.paginator.page(self.page_num).object_list)
        except InvalidPage as error:
            raise IncorrectLookupParameters from error
        self.result_list = self.model_admin.load(request, rows)
        self.result_count = found.count.number
        self.full_result_count = None
        self.show_full_result_count = False
        self.show_admin_actions = bool(rows)
        self.can_show_all = False
        self.multi_page = found.count.number > self.list_per_page

    def url_for_result(self, result: Model) -> str:
        return self.model_admin.url_of(result)
