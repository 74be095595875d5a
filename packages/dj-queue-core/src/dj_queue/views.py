"""The views behind `dj_queue.urls`: `stats.json`, and health for load balancers and Kubernetes.

They answer GET and HEAD, are never cached, stand outside of transactions and logins, and say in one
line what is wrong when a database is down.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.utils.crypto import constant_time_compare
from django.views.decorators.csrf import csrf_exempt

from dj_queue import glances, key_masks
from dj_queue.config import backend_config, managed_aliases, observability_token
from dj_queue.models import STATES, Process
from dj_queue.operations import observation
from dj_queue.operations.observation import Observation, ObservedProcess, ObservedQueue, Unavailable

type View = Callable[[HttpRequest], HttpResponse]

_TEXT = "text/plain; charset=utf-8"


def _plain(view: View, *, protected: bool) -> View:
    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        response = _refusal(request, protected) or view(request)
        response["Cache-Control"] = "no-store"
        return response

    # For monitors, not for people: no login, no token of a form, and no transaction, which would begin
    # before this could say that the database is down.
    answer = csrf_exempt(login_not_required(answer))
    for alias in settings.DATABASES:
        answer = transaction.non_atomic_requests(alias)(answer)
    return answer


def _refusal(request: HttpRequest, protected: bool) -> HttpResponse | None:
    if request.method not in ("GET", "HEAD"):
        response = text("method not allowed: use GET", 405)
        response["Allow"] = "GET, HEAD"
        return response
    token = observability_token() if protected else None
    if token is None or _has_token(request, token):
        return None
    response = text("unauthorized: send the header Authorization: Bearer <DJ_QUEUE_OBSERVABILITY_TOKEN>", 401)
    response["WWW-Authenticate"] = "Bearer"
    return response


def _has_token(request: HttpRequest, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    # Servers hand over the bytes of a header as Latin-1.
    sent = given.strip(" ").encode("latin-1", "replace")
    return constant_time_compare(sent, token.encode("utf-8", "surrogatepass"))


def guarded(view: View) -> View:
    """Answer GET and HEAD, if the request has the token; cache nothing; be touched by no other guard."""
    return _plain(view, protected=True)


def unguarded(view: View) -> View:
    """The same for everybody."""
    return _plain(view, protected=False)


def text(content: str, status: int = 200) -> HttpResponse:
    return HttpResponse(f"{content}\n", status=status, content_type=_TEXT)


def unavailable(aliases: list[Unavailable]) -> str:
    """One line on what is down. Why, stands in the log: the reason may name hosts and users."""
    lost = ", ".join(f"{each.backend_alias!r} (database {each.database_alias!r})" for each in aliases)
    return f"not available: {lost}. The reason is in the log."


@guarded
def stats(request: HttpRequest) -> HttpResponse:
    """All of dj-queue's aliases. 503 if one of them is not available; the others are in the answer."""
    found = glances.look()
    seen = [each for each in found if isinstance(each, Observation)]
    lost = [each for each in found if isinstance(each, Unavailable)]
    answer: dict[str, Any] = {"backends": [_backend(each) for each in seen]}
    if lost:
        answer |= {"error": unavailable(lost), "unavailable": [each.backend_alias for each in lost]}
    return JsonResponse(answer, status=503 if lost else 200)


@unguarded
def live(request: HttpRequest) -> HttpResponse:
    """This process answers. Asks no database, tells nothing of the queue, and so needs no token."""
    return text("live")


@guarded
def ready(request: HttpRequest) -> HttpResponse:
    """Whether the queues are worked, and within the thresholds of the query; 503 says what is wrong."""
    try:
        thresholds = _thresholds(request.GET)
    except ValueError as error:
        return text(f"bad request: {error}", 400)
    names = thresholds.pop("backend")
    configs = [backend_config(alias) for alias in names]
    problems: list[str] = []
    for found in observation.observe_all(configs, cap=(thresholds.get("max_ready") or 0) + 1):
        if isinstance(found, Unavailable):
            problems.append(unavailable([found]))
        else:
            problems += _problems(found, **thresholds)
    if problems:
        return text("not ready\n" + "\n".join(problems), 503)
    return text("ready")


# ---- stats.json -------------------------------------------------------------------------------------


def _backend(seen: Observation) -> dict[str, Any]:
    return {
        "backend_alias": seen.backend_alias,
        "queue_database_alias": seen.database_alias,
        "process_alive_threshold": seen.process_alive_threshold,
        "observed_at": seen.now,
        "queues": [_queue(each) for each in seen.queues],
        "runner_metrics": runner_metrics(seen.processes),
        "recurring": [asdict(each) for each in seen.recurring],
        # Who reads this may be anybody: the arguments that a key was made of are not for all eyes.
        "semaphores": [{**asdict(each), "key": key_masks.masked(each.key)} for each in seen.semaphores],
        "capped": seen.capped,
    }


def _queue(seen: ObservedQueue) -> dict[str, Any]:
    fields = asdict(seen)
    counts = {f"{state}_count": fields.pop(state) for state in STATES}
    return {"name": fields.pop("name"), **counts, **fields}


def runner_metrics(processes: tuple[ObservedProcess, ...]) -> dict[str, Any]:
    """How many processes are live and stale, in all and of each kind; supervisors count too."""
    by_kind: dict[str, dict[str, int]] = {}
    for each in processes:
        counts = by_kind.setdefault(each.kind, {"live": 0, "stale": 0})
        counts["live" if each.live else "stale"] += 1
    total = {status: sum(counts[status] for counts in by_kind.values()) for status in ("live", "stale")}
    return {**total, "by_kind": dict(sorted(by_kind.items()))}


# ---- ready ------------------------------------------------------------------------------------------


def _thresholds(query: QueryDict) -> dict[str, Any]:
    known = ("backend", "queue", "kind", "host", "max_age", "max_latency", "max_ready")
    unknown = [name for name in query if name not in known]
    if unknown:
        raise ValueError(f"unknown parameter {unknown[0]!r}. Known: {', '.join(known)}.")
    managed = managed_aliases()
    for alias in query.getlist("backend"):
        if alias not in managed:
            raise ValueError(f"backend {alias!r} is none of dj-queue's: {', '.join(managed) or 'there are none'}.")
    return {
        "backend": list(dict.fromkeys(query.getlist("backend"))) or list(managed),
        "queues": frozenset(query.getlist("queue")),
        "kind": _kind(query),
        "host": _host(query),
        "max_age": _number(query, "max_age", float, 3_153_600_000),
        "max_latency": _number(query, "max_latency", float, 3_153_600_000),
        "max_ready": _number(query, "max_ready", int, observation.CAP),
    }


def _kind(query: QueryDict) -> str | None:
    given = query.getlist("kind")
    if not given:
        return None
    kind = given[0].capitalize()
    if len(given) > 1 or kind not in Process.Kind.values:
        got = f"{len(given)} of them" if len(given) > 1 else repr(given[0][:40])
        raise ValueError(f"kind: expected one of {', '.join(Process.Kind.values)}, got {got}.")
    return kind


def _host(query: QueryDict) -> str | None:
    given = query.getlist("host")
    if len(given) > 1:
        raise ValueError(f"host: expected one name, or none for this host, got {len(given)} of them.")
    return (given[0] or socket.gethostname()) if given else None


def _number[T: (int, float)](query: QueryDict, name: str, kind: type[T], most: int) -> T | None:
    given = query.getlist(name)
    if not given:
        return None
    expected = f"{name}: expected one {'whole number' if kind is int else 'number'} from 0 to {most}"
    if len(given) > 1:
        raise ValueError(f"{expected}, got {len(given)} of them.")
    try:
        value = kind(given[0])
    except (ValueError, OverflowError):
        value = kind(-1)
    if not 0 <= value <= most:  # NaN is not, either
        raise ValueError(f"{expected}, got {given[0][:40]!r}.")
    return value


def _problems(
    seen: Observation,
    *,
    queues: frozenset[str],
    kind: str | None,
    host: str | None,
    max_age: float | None,
    max_latency: float | None,
    max_ready: int | None,
) -> Iterator[str]:
    age = seen.process_alive_threshold if max_age is None else max_age
    fresh = [each for each in seen.processes if each.age <= age and host in (None, each.hostname)]
    # Without a worker nothing is run, whatever else lives. Who asks for a kind or a host is told of that.
    wanted = kind or (Process.Kind.WORKER.value if fresh and host is None else None)
    if not any(wanted in (None, each.kind) for each in fresh):
        place = f" on host {host[:80]!r}" if host is not None else ""
        yield (
            f"{seen.backend_alias}: no {wanted.lower() if wanted else 'process'}{place} has had a heartbeat within"
            f" {age:g} seconds. Start one: manage.py dj_queue"
        )
    for each in seen.queues:
        if queues and each.name not in queues:
            continue
        place = f"{seen.backend_alias}, queue {each.name!r}"
        if max_latency is not None and each.latency_seconds is not None and each.latency_seconds > max_latency:
            yield f"{place}: a job has waited {each.latency_seconds:.1f} seconds, more than {max_latency:g}"
        if max_ready is not None and each.ready > max_ready:
            yield f"{place}: more than {max_ready} jobs are ready"
