"""What the admins of all stored rows share: scoped to a backend, looked at by staff, changed by verbs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from django.contrib import messages
from django.contrib.admin import ModelAdmin, ShowFacets
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote, unquote
from django.contrib.admin.views.main import PAGE_VAR
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode

from dj_queue.config import BackendConfig
from dj_queue.models import Semaphore
from dj_queue_admin import audit, backends, hooks, permissions
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import filters
from dj_queue_admin.records.listing import Found, Listing
from dj_queue_admin.views import Page, page

if TYPE_CHECKING:
    _Base = ModelAdmin[Any]
else:  # Django's own class takes no parameter.
    _Base = ModelAdmin

OBJECT_ACTION = "_djq_object_action"


class Button(NamedTuple):
    """One verb as a page offers it."""

    verb: Verb
    label: str
    destructive: bool = False


class RecordAdmin(_Base):
    """One model's rows. Subclasses say how to find and load them, and what each verb does."""

    list_per_page = 100
    sortable_by = ()
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    change_list_template = "dj_queue_admin/records/list.html"

    # The verbs of a row's own page, and of the list: an action's name and its verb.
    verbs: ClassVar[tuple[Verb, ...]] = ()
    action_verbs: ClassVar[dict[str, Verb]] = {}
    # Whether an action may be asked for on all that match, beyond the page.
    across: ClassVar[bool] = False
    filters_template: ClassVar[str] = "dj_queue_admin/records/filters.html"
    detail_template: ClassVar[str] = ""

    # ---- for subclasses -----------------------------------------------------------------------------

    def find(self, request: HttpRequest, text: str) -> Found:
        """The rows of the list, in order."""
        raise NotImplementedError

    def load(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        """The instances of one page, from what `find` returned."""
        return list(rows)

    def detail(self, request: HttpRequest, config: BackendConfig, row: Any) -> dict[str, Any]:
        """What the page of a row shows."""
        raise NotImplementedError

    def buttons(self, request: HttpRequest, row: Any) -> list[Button]:
        """The verbs that a row's state allows; those that the visitor may not use are left out later."""
        return []

    def act(self, request: HttpRequest, config: BackendConfig, row: Any, verb: Verb) -> HttpResponse:
        """Do it, tell the visitor, and lead on."""
        raise NotImplementedError

    def filters(self, request: HttpRequest, config: BackendConfig) -> dict[str, Any]:
        """What the form above the list needs."""
        return {}

    # ---- addresses ----------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path("", page(self, self.changelist_view), name=f"{name}_changelist"),
            *self.extra_urls(),
            path("add/", page(self, self.add_view), name=f"{name}_add"),
            path("<path:object_id>/history/", page(self, self.history_view), name=f"{name}_history"),
            path("<path:object_id>/delete/", page(self, self.delete_view), name=f"{name}_delete"),
            path("<path:object_id>/change/", page(self, self.change_view), name=f"{name}_change"),
            path("<path:object_id>/", page(self, self.short_view)),
        ]

    def short_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """A row's address without `change/`, as Django's admin has it."""
        query = request.META.get("QUERY_STRING", "")
        return HttpResponseRedirect(f"change/{query and '?'}{query}")

    def extra_urls(self) -> list[URLPattern]:
        return []

    def url_of(self, row: Model, /, **query: Any) -> str:
        """The address of a row's page on this site."""
        name = f"admin:{row._meta.app_label}_{row._meta.model_name}_change"
        alias = getattr(row, "backend_alias", None) or query.pop("backend", "")
        query = {backends.PARAMETER: alias, **query} if alias else query
        return self._with(reverse(name, args=[quote(row.pk)], current_app=self.admin_site.name), query)

    def url_of_list(self, model: type[Model] | None = None, /, **query: Any) -> str:
        """The address of a list on this site."""
        opts = (model or self.model)._meta
        name = f"admin:{opts.app_label}_{opts.model_name}_changelist"
        return self._with(reverse(name, current_app=self.admin_site.name), query)

    @staticmethod
    def _with(address: str, query: dict[str, Any]) -> str:
        return f"{address}?{urlencode(query)}" if query else address

    # ---- rights -------------------------------------------------------------------------------------

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.admin_site.has_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # by Django's own form: what may be changed has a verb

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_model_perms(self, request: HttpRequest) -> dict[str, bool]:
        return {}  # not in the site's index: the dashboard leads here

    # ---- lists --------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        config = backends.selected(request)
        rows: QuerySet[Any] = self.model._default_manager.using(config.database_alias)
        # Semaphores are the database's, shared by all its backends.
        return rows.all() if self.model is Semaphore else rows.filter(backend_alias=config.alias)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Listing]:
        return Listing

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        where = {} if action_location is None else {"action_location": action_location}  # Django 6.1 and later
        return {
            name: action
            for name, action in super().get_actions(request, **where).items()
            if name not in self.action_verbs or permissions.may(request, self.action_verbs[name], self.model)
        }

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        hooks.require(self.admin_site, request, self.model)
        if request.method == "POST" and (verb := self.action_verbs.get(request.POST.get("action", ""))):
            permissions.require(request, verb, self.model)
            chosen = request.POST.copy()
            ids = [text for text in chosen.getlist(ACTION_CHECKBOX_NAME) if self._is_id(text)]
            chosen.setlist(ACTION_CHECKBOX_NAME, ids)
            request.POST = chosen  # type: ignore[assignment]
        config = backends.selected(request)
        context = {
            **self._page(request, config).context,
            "filters_template": self.filters_template,
            "filters": {"given": filters.given(request.GET), **self.filters(request, config)},
            **(extra_context or {}),
        }
        context.pop("title")
        return super().changelist_view(request, context)

    def _is_id(self, text: str) -> bool:
        """Whether a row could have this id; what could not would be an error of the database."""
        try:
            value = self.opts.pk.to_python(text)
        except ValidationError:
            return False
        return not isinstance(value, int) or 0 < value < 2**63

    # ---- a row's page -------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if (named := audit.named(unquote(object_id))) is not None:
            return HttpResponseRedirect(self._named_url("change", *named))
        config = backends.selected(request)
        row = self.get_object(request, unquote(object_id))
        hooks.require(self.admin_site, request, self.model, row)
        if request.method == "POST":
            verb = request.POST.get(OBJECT_ACTION, "")
            if verb not in self.verbs:
                known = ", ".join(self.verbs) or "none"
                return HttpResponseBadRequest(f"{OBJECT_ACTION} must be one of: {known}.", content_type="text/plain")
            permissions.require(request, verb, self.model)
            return self.act(request, config, row, verb) if row is not None else self.gone(request, config)
        if row is None:
            elsewhere = self._elsewhere(request, config, unquote(object_id))
            return HttpResponseRedirect(elsewhere) if elsewhere else self.gone(request, config)
        offered = [each for each in self.buttons(request, row) if permissions.may(request, each.verb, self.model)]
        context = {
            **self._page(request, config, str(row)).context,
            "row": row,
            "buttons": offered,
            "object_action": OBJECT_ACTION,
            "list_url": self.url_of_list(backend=config.alias),
            "history_url": self._with("../history/", {"backend": config.alias}),
            **self.detail(request, config, row),
            **(extra_context or {}),
        }
        return render(request, self.detail_template, context)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if (named := audit.named(unquote(object_id))) is not None:
            return HttpResponseRedirect(self._named_url("history", *named))
        try:
            pk = self.opts.pk.to_python(unquote(object_id))
        except ValidationError:
            pk = unquote(object_id)
        entries = audit.history(self.model, backends.selected(request).alias, pk)
        paginator = self.get_paginator(request, entries, 100)
        number = request.GET.get(PAGE_VAR, 1)
        context = {
            "action_list": paginator.get_page(number),
            "page_range": paginator.get_elided_page_range(paginator.get_page(number).number),
            "pagination_required": paginator.count > 100,
            **(extra_context or {}),
        }
        return super().history_view(request, object_id, context)

    def _elsewhere(self, request: HttpRequest, config: BackendConfig, text: str) -> str:
        """The address of a row of another backend on the same database, where the request names none."""
        if (
            request.GET.get(backends.PARAMETER)
            or not self._is_id(text)
            or self.model is Semaphore
            or hooks.is_own(self)
        ):
            return ""
        rows = self.model._default_manager.using(config.database_alias).filter(pk=text)
        alias = rows.values_list("backend_alias", flat=True).first()
        return self._named_url("change", alias, text) if alias in backends.aliases() else ""

    def _named_url(self, view: str, alias: str, pk: str) -> str:
        """The address of a row that the admin's log names, in "Recent actions" for one."""
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_{view}"
        address = reverse(name, args=[quote(pk)], current_app=self.admin_site.name)
        return self._with(address, {backends.PARAMETER: alias})

    def gone(self, request: HttpRequest, config: BackendConfig) -> HttpResponse:
        """There is no such row, or not any more."""
        name = self.opts.verbose_name
        messages.warning(request, f"This {name} is not there (any more). Nothing was changed.")
        return HttpResponseRedirect(self.url_of_list(backend=config.alias))

    def back(self, request: HttpRequest, row: Model) -> HttpResponse:
        """To the page of a row that is still there."""
        return HttpResponseRedirect(self.url_of(row, backend=backends.selected(request).alias))

    def _page(self, request: HttpRequest, config: BackendConfig, title: str = "") -> Page:
        return Page(self.admin_site, request, config, title or str(self.opts.verbose_name_plural).capitalize())
