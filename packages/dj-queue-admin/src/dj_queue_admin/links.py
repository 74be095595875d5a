"""Addresses within one admin site, of pages that a project may also have left out of it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote
from django.db.models import Model
from django.urls import reverse


class Links:
    """The console's addresses on a site, for a backend."""

    def __init__(self, site: AdminSite, alias: str, *, only_alias: bool) -> None:
        self._site = site
        self._alias = alias
        # Where there is one backend, no address needs to name it.
        self._query: dict[str, str] = {} if only_alias else {"backend": alias}

    @property
    def site(self) -> AdminSite:
        return self._site

    @property
    def overview(self) -> str:
        return self.to("admin:dj_queue_dashboard_changelist")

    def queue(self, name: str, **query: str) -> str:
        return self.to("admin:dj_queue_dashboard_queue", name, query=query)

    def queue_action(self, name: str) -> str:
        return self.to("admin:dj_queue_dashboard_queue_action", name)

    def jobs_action(self, name: str) -> str:
        return self.to("admin:dj_queue_dashboard_jobs_action", name)

    def rows(self, model: type[Model], **query: str) -> str | None:
        """The changelist of a model; None where the site has none."""
        if not self._site.is_registered(model):
            return None
        return self.to(f"admin:dj_queue_{model._meta.model_name}_changelist", query=query)

    def row(self, model: type[Model], pk: object) -> str | None:
        """The page of a row; None where the site has none."""
        if not self._site.is_registered(model):
            return None
        return self.to(f"admin:dj_queue_{model._meta.model_name}_change", quote(str(pk)))

    def to(self, name: str, *args: str, query: Mapping[str, str] | None = None) -> str:
        address = reverse(name, args=args, current_app=self._site.name)
        query = {**self._query, **(query or {})}
        return f"{address}?{urlencode(query)}" if query else address
