"""The dashboard's place in an admin site: its addresses, and who may see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.admin import ModelAdmin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path

from dj_queue.models import Dashboard
from dj_queue_admin import backends
from dj_queue_admin.views import Page, page

if TYPE_CHECKING:
    _Base = ModelAdmin[Dashboard]
else:  # Django's own class takes no parameter.
    _Base = ModelAdmin


class DashboardAdmin(_Base):
    def get_urls(self) -> list[URLPattern]:
        return [path("", page(self, self.overview), name="dj_queue_dashboard_changelist")]

    def overview(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        config = backends.selected(request)
        context = {**Page(self.admin_site, request, config, title="Dashboard").context}
        return render(request, "dj_queue_admin/dashboard.html", context)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.admin_site.has_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
