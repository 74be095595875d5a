"""What every page of the console shares: its frame, and what it says when a database is down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

from django.contrib.admin import AdminSite, ModelAdmin
from django.db import InterfaceError, OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.template.loader import render_to_string
from django.template.response import SimpleTemplateResponse
from django.utils.cache import add_never_cache_headers

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue_admin import backends, printable

type View = Callable[..., HttpResponse]


@dataclass(frozen=True)
class Page:
    """The frame of one page: the site's own context, the backend, and those to choose from."""

    site: AdminSite
    request: HttpRequest
    config: BackendConfig
    title: str

    @property
    def context(self) -> dict[str, Any]:
        self.request.current_app = self.site.name
        return {
            **self.site.each_context(self.request),
            "title": self.title,
            "backend": self.config,
            "backends": backends.aliases(),
        }


def page(model_admin: ModelAdmin[Any], view: View) -> View:
    """A view of the admin site that stays calm when a database cannot be reached.

    Which backend it is about is settled before it begins, for every page and every button in one way.
    It catches outside the site's own check, which asks the database for the user, and opens no
    transaction of its own, so that `ATOMIC_REQUESTS` has nothing to begin on a database that is away.
    """

    def settled(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            backends.settle(request)
        except backends.BackendsDifferError as error:
            return HttpResponseBadRequest(str(error), content_type="text/plain; charset=utf-8")
        return _printable(view(request, *args, **kwargs))

    checked = model_admin.admin_site.admin_view(settled)

    def calm(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return checked(request, *args, **kwargs)
        except (OperationalError, InterfaceError) as error:
            if not any(dialect_for(config.database_alias).is_away(error) for config in backends.configs()):
                raise
            return _unavailable(error)

    for alias in connections:
        transaction.non_atomic_requests(using=alias)(calm)
    return update_wrapper(calm, view)


def _printable(response: HttpResponse) -> HttpResponse:
    """Without characters that hide or turn what stands around them, wherever on the page a stored text brings them."""

    def written(response: HttpResponse) -> None:
        if response.headers.get("Content-Type", "").startswith("text/html"):
            response.content = printable.page(response.content)

    if isinstance(response, SimpleTemplateResponse):
        response.add_post_render_callback(written)
    else:
        written(response)
    return response


def _unavailable(error: Exception) -> HttpResponse:
    response = HttpResponse(render_to_string("dj_queue_admin/unavailable.html"), status=503)
    response["Retry-After"] = "5"
    add_never_cache_headers(response)
    return response
