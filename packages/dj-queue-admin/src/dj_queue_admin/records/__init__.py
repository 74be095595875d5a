"""The stored rows in the admin: changelists, the job page, and what operators do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import Model

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    type AnyModelAdmin = ModelAdmin[Any]

# What `dj_queue_admin.admin.register` puts on a site, beside the dashboard.
MODEL_ADMINS: dict[type[Model], type[AnyModelAdmin]] = {}
