"""Which backend a page shows: `backend` in its address or in what is posted, one of dj-queue's in `TASKS`."""

from __future__ import annotations

from collections.abc import Iterator

from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest

from dj_queue.config import BackendConfig, backend_config, managed_aliases

PARAMETER = "backend"


class BackendsDifferError(BadRequest):
    """The address and what was posted name different backends."""


def selected(request: HttpRequest) -> BackendConfig:
    """The backend that the request names, else the default one.

    Raises `Http404` for one that is not ours, and `BackendsDifferError` where the request contradicts itself.
    """
    known = aliases()
    named = _named(request)
    if len(named) > 1:
        raise BackendsDifferError(
            f"This request names more than one {PARAMETER}: {', '.join(map(repr, named))}. Nothing was changed."
            f" Name one, as {PARAMETER} in the address or in what is posted."
        )
    alias = named[0] if named else known[0] if known else ""
    if alias not in known:
        raise Http404(f"{alias!r} is no backend of dj-queue. Known: {', '.join(known) or 'none'}.")
    return backend_config(alias)


def settle(request: HttpRequest) -> None:
    """Let the address say what was posted: it is what filters, links and redirects are made of."""
    alias = selected(request).alias
    if request.method == "POST" and request.POST.get(PARAMETER) and not request.GET.get(PARAMETER):
        query = request.GET.copy()
        query[PARAMETER] = alias
        request.GET = query  # type: ignore[assignment]
        request.META["QUERY_STRING"] = query.urlencode()


def _named(request: HttpRequest) -> list[str]:
    given = request.GET.getlist(PARAMETER)
    if request.method == "POST":
        given += request.POST.getlist(PARAMETER)
    return list(dict.fromkeys(filter(None, given)))


def aliases() -> list[str]:
    """Every alias of dj-queue, "default" first."""
    return sorted(managed_aliases(), key=lambda alias: (alias != "default", alias))


def configs() -> Iterator[BackendConfig]:
    return (backend_config(alias) for alias in aliases())
