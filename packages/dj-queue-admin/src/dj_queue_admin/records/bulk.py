"""One verb on everything that a filter matches: asked first, then done in pieces within a time budget."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, path, reverse

from dj_queue.config import BackendConfig
from dj_queue.models import FailedExecution, Job
from dj_queue.operations import jobs
from dj_queue_admin import audit, backends, hooks, permissions
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import filters, verbs
from dj_queue_admin.records.cells import counted
from dj_queue_admin.records.selection import DRIVERS, Selection
from dj_queue_admin.views import page

if TYPE_CHECKING:
    from dj_queue_admin.records.record import RecordAdmin

BUDGET: Final = 5.0  # seconds of one request
PIECE: Final = 2_000  # rows that are looked at before the clock is

_DISCARDABLE = ("ready", "scheduled", "blocked", "failed")
_DONE: Final = {"retry": "Retried", "discard": "Discarded"}


@dataclass
class Progress:
    """How far it has come. Kept in the page's form: it says where to go on, not what may be done."""

    after: int
    last: int
    done: int = 0

    @classmethod
    def read(cls, given: Any, wanted: Selection) -> Progress:
        after, last, done = (_whole(given.get(name)) for name in ("after", "last", "done"))
        return cls(after or 0, wanted.newest if last is None else last, done or 0)


def urls(model_admin: RecordAdmin) -> list[URLPattern]:
    def view(request: HttpRequest) -> HttpResponse:
        return bulk_view(model_admin, request)

    opts = model_admin.opts
    return [path("bulk/", page(model_admin, view), name=f"{opts.app_label}_{opts.model_name}_bulk")]


def url(model_admin: RecordAdmin, request: HttpRequest, verb: Verb) -> str:
    """Where a verb on all that the list of this request shows is asked about."""
    query = {name: value for name, value in request.GET.items() if name not in ("p", "o", "e", "verb")}
    return address(model_admin, verb, **query)


def address(model_admin: RecordAdmin, verb: Verb, /, **query: Any) -> str:
    opts = model_admin.opts
    name = f"admin:{opts.app_label}_{opts.model_name}_bulk"
    return model_admin._with(reverse(name, current_app=model_admin.admin_site.name), {"verb": verb, **query})


def bulk_view(model_admin: RecordAdmin, request: HttpRequest) -> HttpResponse:
    """GET asks; POST does as much as fits into the budget, and asks to go on if there is more."""
    if request.method not in ("GET", "HEAD", "POST"):
        return HttpResponseNotAllowed(["GET", "POST"])
    config = backends.selected(request)
    verb = _verb(request)
    permissions.require(request, verb, model_admin.model)
    hooks.require(model_admin.admin_site, request, model_admin.model)
    wanted = _wanted(model_admin, request, config, verb)
    if isinstance(wanted, str):
        messages.error(request, wanted)
        return HttpResponseRedirect(_back(model_admin, request))
    if request.method != "POST":
        progress = Progress.read({}, wanted)
        return _ask(model_admin, request, config, verb, wanted, progress)
    progress = Progress.read(request.POST, wanted)
    before, whole = progress.done, False
    try:
        ended, whole = _work(config, verb, wanted, progress), True
    finally:
        # Also of what was broken off, by whatever: the jobs are gone.
        if count := progress.done - before:
            text = f"{_DONE[verb]} {counted(count, 'job')}: {wanted}{'' if whole else '. It broke off'}."
            audit.record_one(request, Job, str(wanted), text, deleted=verb == "discard")
    if not ended:
        return _ask(model_admin, request, config, verb, wanted, progress)
    if progress.done:
        messages.success(request, f"{_DONE[verb]} {counted(progress.done, 'job')}: {wanted}.")
    else:
        messages.warning(request, f"Nothing to {verb}: there are no {wanted} (any more).")
    return HttpResponseRedirect(_back(model_admin, request))


def _verb(request: HttpRequest) -> Verb:
    match request.GET.get("verb"):
        case "retry":
            return "retry"
        case "discard":
            return "discard"
        case other:
            raise Http404(f"{other!r} cannot be done to all that match. Known: retry, discard.")


def _wanted(model_admin: RecordAdmin, request: HttpRequest, config: BackendConfig, verb: Verb) -> Selection | str:
    """The selection, or why nothing can be done to it."""
    fixed = {"status": "failed"} if model_admin.model is FailedExecution else {}
    contents = permissions.may_read(request, model_admin.model)
    wanted = filters.read(request.GET, config, contents=contents, text=request.GET.get("q", ""), **fixed)
    wanted = narrowed(model_admin, request, wanted)
    if wanted.mistakes:
        return f"{wanted.mistakes[0]}. Nothing was changed: correct the filter."
    if verb == "retry" and wanted.state in ("", "failed"):
        return replace(wanted, state="failed")
    if verb == "discard" and wanted.state in _DISCARDABLE:
        return wanted
    known = "failed" if verb == "retry" else ", ".join(_DISCARDABLE)
    return f"To {verb} all that match, filter by one of these states first: {known}. Nothing was changed."


def narrowed(model_admin: RecordAdmin, request: HttpRequest, wanted: Selection) -> Selection:
    """The selection, within what the project's own admins let the visitor see."""
    site = model_admin.admin_site
    failures = hooks.chosen(site, request, FailedExecution) if model_admin.model is FailedExecution else None
    return replace(wanted, jobs=hooks.chosen(site, request, Job), failures=failures)


def _work(config: BackendConfig, verb: Verb, wanted: Selection, progress: Progress) -> bool:
    """Go on until the end, or until the time is up; return whether it is the end."""
    assert wanted.state in DRIVERS
    do = verbs.retry if verb == "retry" else _discard_of(wanted.state)
    deadline = time.monotonic() + BUDGET
    while time.monotonic() < deadline:
        ids, reached = wanted.piece(progress.after, progress.last, PIECE)
        if reached is None:
            return True
        for start in range(0, len(ids), verbs.BATCH):
            progress.done += do(config, ids[start : start + verbs.BATCH])
        progress.after = reached
    return False


def _discard_of(state: str) -> Any:
    """Only what is still in the state that was confirmed."""
    step = getattr(jobs, f"discard_{state}_jobs")

    def discard(config: BackendConfig, job_ids: list[UUID]) -> int:
        count: int = step(job_ids=job_ids, batch_size=verbs.BATCH, backend_alias=config.alias)
        return count

    return discard


def _ask(
    model_admin: RecordAdmin,
    request: HttpRequest,
    config: BackendConfig,
    verb: Verb,
    wanted: Selection,
    progress: Progress,
) -> HttpResponse:
    title = f"{verb.capitalize()} all that match?"
    context = {
        **model_admin._page(request, config, title).context,
        "verb": verb,
        "past": _DONE[verb].lower(),
        "wanted": wanted,
        "count": wanted.count,
        "progress": progress,
        "done": f"{progress.done:,}",
        # As plain digits, whatever the site's way of writing numbers.
        "after": str(progress.after),
        "last": str(progress.last),
        "done_plain": str(progress.done),
        "list_url": _back(model_admin, request),
        "destructive": verb == "discard",
        "records_url": model_admin.url_of_list(backend=config.alias),
        "records_name": str(model_admin.opts.verbose_name_plural).capitalize(),
    }
    return render(request, "dj_queue_admin/records/bulk.html", context)


def _back(model_admin: RecordAdmin, request: HttpRequest) -> str:
    """The list with the same filter."""
    return model_admin.url_of_list(**{name: value for name, value in request.GET.items() if name != "verb"})


def _whole(text: Any) -> int | None:
    try:
        return max(0, min(int(text), 2**63 - 1))
    except (TypeError, ValueError):
        return None
