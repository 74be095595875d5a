"""What the dashboard's buttons do: one POST each, allowed, done, noted in the admin's log, and told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.urls import NoReverseMatch
from django.utils.http import url_has_allowed_host_and_scheme

from dj_queue.config import BackendConfig
from dj_queue.models import Job, Pause, ReadyExecution
from dj_queue.operations import jobs, queues
from dj_queue_admin import audit, hooks, permissions
from dj_queue_admin.dashboard.queue import SIZE, State, exists, rows, state_named
from dj_queue_admin.links import Links
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import bulk
from dj_queue_admin.records.job_page import JSON_FIELDS
from dj_queue_admin.templatetags.dj_queue_admin import number

MOST_SELECTED: Final = SIZE
_CLEARED_AT_ONCE: Final = 500


class Told(NamedTuple):
    """What is said of an action on a queue, and where to go on if there is more to do."""

    level: int
    text: str
    go_on: str = ""


def act_on_queue(request: HttpRequest, config: BackendConfig, links: Links, name: str) -> HttpResponse:
    """Pause, resume or clear a queue."""
    action = request.POST.get("action", "")
    act = _ON_QUEUE.get(action)
    if act is None:
        return HttpResponseBadRequest(f"{action!r} is no action on a queue. Known: {', '.join(_ON_QUEUE)}.")
    verb, model, do = act
    permissions.require(request, verb, model)
    hooks.require(links.site, request, model)
    # A queue that is gone meanwhile is no mistake of the person who pressed the button, and may be paused ahead.
    told = do(request, config, links, name)
    messages.add_message(request, told.level, told.text)
    if told.go_on:
        return HttpResponseRedirect(told.go_on)
    return _back(request, config, links, name)


def act_on_jobs(request: HttpRequest, config: BackendConfig, links: Links, name: str) -> HttpResponse:
    """Retry, discard or enqueue again the selected jobs of a queue, as far as they still are in the state."""
    state = state_named(request.POST.get("state", ""))
    verb = next((verb for verb in state.verbs if verb == request.POST.get("action")), None)
    if verb is None:
        allowed = ", ".join(state.verbs) or "nothing"
        return HttpResponseBadRequest(f"To {state.name} jobs, {allowed} can be done.")
    permissions.require(request, verb, Job)
    hooks.require(links.site, request, Job)
    selected = _ids(request.POST.getlist("_selected_action"))
    if not selected:
        messages.warning(request, "No job was selected.")
        return _back(request, config, links, name)
    # Only those of this backend, queue and state: whatever else was sent is left alone.
    found = rows(config, name, state).filter(**{f"{state.job_id}__in": selected[:MOST_SELECTED]})
    found = hooks.seen(links.site, request, Job, found, state.job_id)
    found = found.defer(*(f"{state.path}{field}" for field in JSON_FIELDS))
    there = [row.job if state.path else row for row in found.order_by(*state.order)]
    done = _ON_JOBS[verb](config, state, [job.pk for job in there])
    if done:
        text = f"{_DONE[verb]} from the dashboard's page of the queue {name} ({state.name})."
        audit.record(request, [job for job in there if job.pk in done], text, deleted=verb == "discard")
    _tell(request, verb, len(done), len(set(selected)))
    return _back(request, config, links, name)


# ---- queues -----------------------------------------------------------------------------------------


def _pause(request: HttpRequest, config: BackendConfig, links: Links, name: str) -> Told:
    if queues.is_paused(config, name):
        return Told(messages.INFO, f"The queue {name} was paused already.")
    queues.pause(config, name)
    audit.record_one(request, Pause, name, f"Paused the queue {name} of {config.alias}.")
    return Told(messages.SUCCESS, f"The queue {name} is paused: workers take no more jobs from it.")


def _resume(request: HttpRequest, config: BackendConfig, links: Links, name: str) -> Told:
    if not queues.is_paused(config, name):
        return Told(messages.INFO, f"The queue {name} was not paused any more.")
    queues.resume(config, name)
    audit.record_one(request, Pause, name, f"Resumed the queue {name} of {config.alias}.")
    return Told(messages.SUCCESS, f"The queue {name} goes on.")


def _clear(request: HttpRequest, config: BackendConfig, links: Links, name: str) -> Told:
    """Discard ready jobs for as long as one request may take. What was done is noted, even if it broke off."""
    ready = ReadyExecution.objects.using(config.database_alias).filter(backend_alias=config.alias, queue_name=name)
    ready = hooks.seen(links.site, request, Job, ready, "job_id")
    newest = ready.order_by("-pk").values_list("pk", flat=True).first() or 0
    deadline = time.monotonic() + bulk.BUDGET
    count, last, ended, what = 0, None, False, ""
    try:
        while not ended and (last is None or time.monotonic() < deadline):
            batch = _after(ready.filter(pk__lte=newest), last)
            ended = len(batch) < _CLEARED_AT_ONCE
            if not batch:
                break
            last = batch[-1]
            job_ids = [job_id for _, _, job_id in batch]
            count += jobs.discard_ready_jobs(job_ids=job_ids, backend_alias=config.alias)
    finally:
        if count:
            what = f"{number(count)} ready {'job' if count == 1 else 'jobs'}"
            more = "" if ended else ", and left others"
            text = f"Discarded {what} of the queue {name} of {config.alias}{more}."
            audit.record_one(request, Job, name, text, deleted=True)
    if not count:
        return Told(messages.INFO, f"The queue {name} had no ready jobs.")
    if ended:
        return Told(messages.SUCCESS, f"{what} of the queue {name} discarded.")
    text = f"{what} of the queue {name} discarded so far, in {bulk.BUDGET:g} seconds. More are left."
    return Told(messages.WARNING, text, _rest(links, name))


def _after(ready: QuerySet[ReadyExecution], last: tuple[int, int, UUID] | None) -> list[tuple[int, int, UUID]]:
    """The next ready jobs, in the order of their index."""
    if last is not None:
        ready = ready.filter(Q(priority__lt=last[0]) | Q(priority=last[0], pk__gt=last[1]))
    return list(ready.order_by("-priority", "pk").values_list("priority", "pk", "job_id")[:_CLEARED_AT_ONCE])


def _rest(links: Links, name: str) -> str:
    """Where to go on with clearing; empty where the site has no such page."""
    try:
        return links.to("admin:dj_queue_job_bulk", query={"verb": "discard", "status": "ready", "queue": name})
    except NoReverseMatch:
        return ""


type _Act = Callable[[HttpRequest, BackendConfig, Links, str], Told]

_ON_QUEUE: Final[dict[str, tuple[Verb, type[Pause] | type[Job], _Act]]] = {
    "pause": ("pause", Pause, _pause),
    "resume": ("resume", Pause, _resume),
    "clear": ("clear", Job, _clear),
}


# ---- jobs -------------------------------------------------------------------------------------------


def _retry(config: BackendConfig, state: State, ids: list[UUID]) -> set[UUID]:
    return _left(config, state, ids, lambda: jobs.retry_failed_jobs(job_ids=ids, backend_alias=config.alias))


def _discard(config: BackendConfig, state: State, ids: list[UUID]) -> set[UUID]:
    discard = getattr(jobs, f"discard_{state.name}_jobs")
    return _left(config, state, ids, lambda: discard(job_ids=ids, backend_alias=config.alias))


def _enqueue(config: BackendConfig, state: State, ids: list[UUID]) -> set[UUID]:
    done = set()
    for job_id in ids:
        try:
            jobs.enqueue_job_again(job_id, backend_alias=config.alias)
        except Job.DoesNotExist:
            continue
        done.add(job_id)
    return done


def _left(config: BackendConfig, state: State, ids: list[UUID], act: Callable[[], int]) -> set[UUID]:
    """Which of the jobs an action changed. Where another was faster with some, those that are left tell."""
    if act() == len(ids):
        return set(ids)
    still = state.model.objects.using(config.database_alias).filter(job_id__in=ids).values_list("job_id", flat=True)
    return set(ids) - set(still)


_ON_JOBS: Final[dict[Verb, Callable[[BackendConfig, State, list[UUID]], set[UUID]]]] = {
    "retry": _retry,
    "discard": _discard,
    "enqueue": _enqueue,
}
_DONE: Final[dict[Verb, str]] = {"retry": "Retried", "discard": "Discarded", "enqueue": "Enqueued again"}


def _tell(request: HttpRequest, verb: Verb, done: int, asked: int) -> None:
    if done:
        messages.success(request, f"{_DONE[verb]} {number(done)} {'job' if done == 1 else 'jobs'}.")
    if done < asked:
        gone = asked - done
        what = "1 job was" if gone == 1 else f"{number(gone)} jobs were"
        messages.warning(request, f"{what} not in this state any more, and left alone.")


def _ids(texts: list[str]) -> list[UUID]:
    """The ids among what was sent, without what cannot be one."""
    found = []
    for text in texts:
        try:
            found.append(UUID(text))
        except ValueError:
            continue
    return found


def _back(request: HttpRequest, config: BackendConfig, links: Links, name: str) -> HttpResponse:
    """To where the button was, on this host; to the overview if the queue is gone with its last job."""
    target = request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(target, {request.get_host()}, require_https=request.is_secure()):
        target = links.queue(name)
    if target.split("?")[0] == links.queue(name).split("?")[0] and not exists(config, name):
        target = links.overview
    return HttpResponseRedirect(target)
