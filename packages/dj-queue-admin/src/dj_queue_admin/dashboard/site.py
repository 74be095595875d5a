"""The dashboard's place in an admin site: its addresses, and who may see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib.admin import ModelAdmin
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import render
from django.urls import URLPattern, path

from dj_queue.config import BackendConfig
from dj_queue.models import Dashboard
from dj_queue_admin import backends, hooks
from dj_queue_admin.dashboard import actions, names, overview, queue
from dj_queue_admin.links import Links
from dj_queue_admin.views import Page, page

if TYPE_CHECKING:
    _Base = ModelAdmin[Dashboard]
else:  # Django's own class takes no parameter.
    _Base = ModelAdmin

names.register()

type Action = Callable[[HttpRequest, BackendConfig, Links, str], HttpResponse]


class DashboardAdmin(_Base):
    def get_urls(self) -> list[URLPattern]:
        return [
            path("", page(self, self.overview), name="dj_queue_dashboard_changelist"),
            path(
                "queue/<dj_queue_name:name>/jobs/action/",
                page(self, self.act_on_jobs),
                name="dj_queue_dashboard_jobs_action",
            ),
            # The name that this address has in dj-queue 0.6.
            path(
                "queue/<dj_queue_name:name>/jobs/action/",
                page(self, self.act_on_jobs),
                name="dj_queue_dashboard_job_action",
            ),
            path(
                "queue/<dj_queue_name:name>/action/",
                page(self, self.act_on_queue),
                name="dj_queue_dashboard_queue_action",
            ),
            path("queue/<dj_queue_name:name>/", page(self, self.queue), name="dj_queue_dashboard_queue"),
        ]

    def overview(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        config = self._entered(request)
        shown = overview.context(request, config, self._links(config))
        return self._show(request, config, "overview", "Dashboard", shown)

    def queue(self, request: HttpRequest, name: str) -> HttpResponse:
        config = self._entered(request)
        shown = queue.context(request, config, self._links(config), name)
        return self._show(request, config, "queue", f"Queue {name}", shown)

    def act_on_queue(self, request: HttpRequest, name: str) -> HttpResponse:
        return self._act(request, name, actions.act_on_queue)

    def act_on_jobs(self, request: HttpRequest, name: str) -> HttpResponse:
        return self._act(request, name, actions.act_on_jobs)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return bool(self.admin_site.has_permission(request))

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(self.admin_site.has_permission(request))

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def _entered(self, request: HttpRequest) -> BackendConfig:
        """The backend of a request, whose visitor may see the dashboard."""
        hooks.require(self.admin_site, request, Dashboard)
        return backends.selected(request)

    def _act(self, request: HttpRequest, name: str, act: Action) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        config = self._entered(request)
        return act(request, config, self._links(config), name)

    def _show(
        self, request: HttpRequest, config: BackendConfig, template: str, title: str, shown: dict[str, Any]
    ) -> HttpResponse:
        shown |= {
            "links": self._links(config),
            "backend": config,
            "now": shown["observation"].now,
            "here": request.get_full_path(),
        }
        # The script on the page asks for what changes, and nothing around it.
        if request.headers.get("DJ-Queue-Live") == "1":
            return render(request, f"dj_queue_admin/dashboard/{template}_live.html", shown)
        frame = Page(self.admin_site, request, config, title).context
        return render(request, f"dj_queue_admin/dashboard/{template}.html", {**frame, **shown})

    def _links(self, config: BackendConfig) -> Links:
        return Links(self.admin_site, config.alias, only_alias=len(backends.aliases()) == 1)
