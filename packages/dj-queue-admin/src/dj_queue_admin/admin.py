"""What the admin finds: registers the console on the default site, and on others that ask."""

from __future__ import annotations

from functools import update_wrapper
from typing import Any

from django.contrib import admin
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from dj_queue.models import Dashboard
from dj_queue_admin.dashboard import DashboardAdmin
from dj_queue_admin.records import MODEL_ADMINS


def register(site: AdminSite) -> None:
    """Put the console on an admin site. Call it once for each site other than the default."""
    site.register(Dashboard, DashboardAdmin)
    for model, model_admin in MODEL_ADMINS.items():
        site.register(model, model_admin)
    _redirect_app_index(site)


def _redirect_app_index(site: AdminSite) -> None:
    """Let the app's own index lead to the dashboard.

    The admin has no hook for a redirect there, so this one instance answers for our label, and asks the
    method that it had for every other. Neither the class nor any other site is touched.
    """
    usual = site.app_index

    def app_index(request: HttpRequest, app_label: str, *args: Any, **kwargs: Any) -> HttpResponse:
        if app_label == Dashboard._meta.app_label:
            return redirect(reverse("admin:dj_queue_dashboard_changelist", current_app=site.name))
        return usual(request, app_label, *args, **kwargs)

    site.app_index = update_wrapper(app_index, usual)  # type: ignore[assignment]


register(admin.site)
