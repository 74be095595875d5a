"""What a project's own admins let a visitor see: `has_view_permission` and `get_queryset`, heeded wherever rows appear.

A project may register admins of its own for the queue's models. What they keep from a list is kept from every other
page that would show it, and from every action.
"""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.exceptions import NotRegistered
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest


def may_see(site: AdminSite, request: HttpRequest, model: type[Model], row: Model | None = None) -> bool:
    """Whether the visitor may see rows of the model, or this one. Where the site has no admin of it, all may."""
    model_admin = _admin(site, model)
    return model_admin is None or bool(model_admin.has_view_permission(request, row))


def require(site: AdminSite, request: HttpRequest, model: type[Model], row: Model | None = None) -> None:
    """Raise `PermissionDenied`, which Django answers with 403, for what the visitor may not see."""
    if not may_see(site, request, model, row):
        raise PermissionDenied(f"The admin of {model._meta.verbose_name_plural} does not show them to you.")


def chosen(site: AdminSite, request: HttpRequest, model: type[Model]) -> QuerySet[Any] | None:
    """The ids of the rows that a project's own `get_queryset` leaves; None if it has none, and so leaves all."""
    model_admin = _admin(site, model)
    if model_admin is None or not is_own(model_admin):
        return None
    return model_admin.get_queryset(request).order_by().values("pk")


def is_own(model_admin: ModelAdmin[Any]) -> bool:
    """Whether the project, not the console, says which rows an admin has."""
    function = getattr(model_admin.get_queryset, "__func__", None)
    return function is None or function.__module__.partition(".")[0] not in ("dj_queue_admin", "django")


def seen(
    site: AdminSite, request: HttpRequest, model: type[Model], rows: QuerySet[Any], field: str = "pk"
) -> QuerySet[Any]:
    """The rows whose `field`, an id of the model, the visitor may see."""
    if not may_see(site, request, model):
        return rows.none()
    ids = chosen(site, request, model)
    return rows if ids is None else rows.filter(**{f"{field}__in": ids.using(rows.db)})


def _admin(site: AdminSite, model: type[Model]) -> ModelAdmin[Any] | None:
    try:
        return site.get_model_admin(model)
    except NotRegistered:
        return None
