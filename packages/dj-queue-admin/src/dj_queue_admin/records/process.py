"""Processes: what runs where, how long ago it gave a sign of life, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig, backend_config
from dj_queue.dialects import elapsed
from dj_queue.models import ClaimedExecution, Job, Process
from dj_queue.operations import processes, recurring
from dj_queue_admin import backends, hooks, liveness, permissions
from dj_queue_admin.records import filters, job_page, shown
from dj_queue_admin.records.cells import badge, duration, link, moment, since
from dj_queue_admin.records.listing import Found, count_up_to_cap
from dj_queue_admin.records.record import RecordAdmin
from dj_queue_admin.redaction import redaction

CLAIMS: Final = 50
STATUSES: Final = ("live", "late", "stale")
_RUNNING = 20_000


class ProcessAdmin(RecordAdmin):
    list_display = ("process", "kind", "status", "heartbeat", "host", "supervised")
    list_display_links = None
    filters_template = "dj_queue_admin/records/process_filters.html"
    detail_template = "dj_queue_admin/records/process.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Process]:
        return super().get_queryset(request).defer("metadata").select_related("supervisor")

    def find(self, request: HttpRequest, text: str) -> Found:
        config = backends.selected(request)
        given = filters.given(request.GET)
        mistakes = tuple(f"{name} holds a character that no database stores" for name in given if "\0" in given[name])
        rows = self.get_queryset(request).order_by("supervisor_id", "kind", "name", "pk")
        if given["status"] in STATUSES:
            beats = processes.last_beats(config, processes.of_alias(config))
            rows = rows.filter(pk__in=[beat.process_id for beat in beats if _life(config, beat) == given["status"]])
        for name in ("kind", "hostname"):
            if given[name]:
                rows = rows.filter(**{name: given[name]})
        if mistakes:
            rows = rows.none()
        return Found(rows, count_up_to_cap(rows), "", mistakes)

    def load(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        now = recurring.now(backends.selected(request))
        for row in rows:
            row.now = now
        return list(rows)

    def filters(self, request: HttpRequest, config: BackendConfig) -> dict[str, Any]:
        return {"kinds": Process.Kind.values, "statuses": STATUSES}

    @admin.display(description="Process")
    def process(self, row: Process) -> SafeString:
        return link(self.url_of(row), f"{row.name}, pid {row.pid}")

    @admin.display(description="Status")
    def status(self, row: Any) -> SafeString:
        return badge(life(row, row.now))

    @admin.display(description="Last heartbeat")
    def heartbeat(self, row: Process) -> SafeString:
        return moment(row.last_heartbeat_at)

    @admin.display(description="Host")
    def host(self, row: Process) -> str:
        return shown.visible(row.hostname, longest=100, lines=False)

    @admin.display(description="Supervisor")
    def supervised(self, row: Process) -> SafeString | str:
        return link(self.url_of(row.supervisor), row.supervisor.name) if row.supervisor else ""

    def detail(self, request: HttpRequest, config: BackendConfig, row: Any) -> dict[str, Any]:
        now = recurring.now(config)
        using = config.database_alias
        metadata = shown.read_field(Process.objects.using(using).filter(pk=row.pk), "metadata")
        claims = ClaimedExecution.objects.using(using)
        oldest = claims.order_by("-pk").values_list("pk", flat=True)[_RUNNING : _RUNNING + 1].first() or 0
        held = claims.filter(pk__gt=oldest, process_id=row.pk).order_by("pk")
        ids = list(held.values_list("job_id", flat=True)[: CLAIMS + 1])
        jobs = Job.objects.using(using).filter(pk__in=ids[:CLAIMS]).defer(*job_page.JSON_FIELDS)
        runners = hooks.seen(self.admin_site, request, Process, row.children.using(using))
        children = list(runners.defer("metadata").order_by("kind", "name"))
        return {
            "life": life(row, now),
            "heartbeat_age": duration(elapsed(row.last_heartbeat_at, now)),
            "uptime": since(row.created_at, now),
            "late_after": duration(liveness.late_after(config)),
            "stale_after": duration(config.process_alive_threshold),
            "metadata": shown.pretty(redaction().of(metadata)) if permissions.may_read(request, Process) else "",
            "children": [(child, self.url_of(child), life(child, now)) for child in children],
            "supervisor_url": self.url_of(row.supervisor) if row.supervisor else "",
            "claims": job_page.linked(self, request, list(jobs.select_related(*job_page.STATE_ROWS))),
            "more_claims": len(ids) > CLAIMS,
        }


def life(row: Process, now: datetime) -> liveness.Life:
    return liveness.life(backend_config(row.backend_alias), elapsed(row.last_heartbeat_at, now))


def _life(config: BackendConfig, beat: processes.Beat) -> liveness.Life:
    return liveness.life(config, beat.age) if beat.at else "stale"
