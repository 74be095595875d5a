"""Which backend a page shows: `?backend=`, one of those that `TASKS` gives to dj-queue."""

from __future__ import annotations

from collections.abc import Iterator

from django.http import Http404, HttpRequest

from dj_queue.config import BackendConfig, backend_config, managed_aliases

PARAMETER = "backend"


def selected(request: HttpRequest) -> BackendConfig:
    """The backend that the request names, else the default one. Raises `Http404` for one that is not ours."""
    known = aliases()
    alias = request.GET.get(PARAMETER) or (known[0] if known else "")
    if alias not in known:
        raise Http404(f"{alias!r} is no backend of dj-queue. Known: {', '.join(known) or 'none'}.")
    return backend_config(alias)


def aliases() -> list[str]:
    """Every alias of dj-queue, "default" first."""
    return sorted(managed_aliases(), key=lambda alias: (alias != "default", alias))


def configs() -> Iterator[BackendConfig]:
    return (backend_config(alias) for alias in aliases())
