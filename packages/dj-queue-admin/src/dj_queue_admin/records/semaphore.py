"""Semaphores: which concurrency keys are limited, who holds a slot, and who waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.models import BlockedExecution, Job, Semaphore
from dj_queue_admin import backends
from dj_queue_admin.records import job_page, keys, shown
from dj_queue_admin.records.cells import link, moment
from dj_queue_admin.records.listing import Found, count_up_to_cap
from dj_queue_admin.records.record import RecordAdmin
from dj_queue_admin.records.selection import MATCHES, WINDOW, Count


class SemaphoreAdmin(RecordAdmin):
    list_display = ("name", "free", "expires")
    list_display_links = None
    search_fields = ("key",)
    search_help_text = "Text of a concurrency key."
    detail_template = "dj_queue_admin/records/semaphore.html"

    def find(self, request: HttpRequest, text: str) -> Found:
        rows = self.get_queryset(request)
        if not text:
            return Found(rows.order_by("key"), count_up_to_cap(rows))
        if "\0" in text:
            mistake = "The search holds a character that no database stores"
            return Found(rows.none(), count_up_to_cap(rows.none()), "", (mistake,))
        oldest = rows.order_by("-pk").values_list("pk", flat=True)[WINDOW : WINDOW + 1].first()
        having = rows.filter(key__icontains=text, pk__gt=oldest or 0).order_by("-pk")
        some = list(having.values_list("pk", "key")[: MATCHES + 1])
        # What is hidden is not found, nor does a count tell of it.
        visible = keys.visible(backends.selected(request), [key for _, key in some])
        ids = [pk for pk, key in some if text.lower() in visible[key].lower()]
        note = f"Searched the newest {WINDOW:,} semaphores." if oldest else ""
        found = rows.filter(pk__in=ids[:MATCHES]).order_by("-pk")
        return Found(found, Count(len(ids[:MATCHES]), len(some) > MATCHES), note)

    def load(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        config = backends.selected(request)
        visible = keys.visible(config, [row.key for row in rows])
        for row in rows:
            row.shown_for, row.visible_key = config.alias, visible[row.key]
        return list(rows)

    @admin.display(description="Concurrency key")
    def name(self, row: Any) -> SafeString:
        return link(self.url_of(row, backend=row.shown_for), shown.visible(row.visible_key, longest=255, lines=False))

    @admin.display(description="Free slots")
    def free(self, row: Semaphore) -> str:
        return f"{row.value} of {row.limit}"

    @admin.display(description="Expires")
    def expires(self, row: Semaphore) -> SafeString:
        return moment(row.expires_at)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        row = self.get_object(request, unquote(object_id))
        if row is not None:
            row.key = keys.visible(backends.selected(request), [row.key])[row.key]
            extra_context = {"title": f"Change history: {row}", "object": row, **(extra_context or {})}
        return super().history_view(request, object_id, extra_context)

    def detail(self, request: HttpRequest, config: BackendConfig, row: Semaphore) -> dict[str, Any]:
        key = keys.visible(config, [row.key])[row.key]
        blocked = BlockedExecution.objects.using(config.database_alias).filter(concurrency_key=row.key)
        return {
            "key": shown.visible(key, longest=255, lines=False),
            "title": shown.visible(key, longest=60, lines=False),
            "holders": job_page.linked(self, request, job_page.holders(config, row.key)),
            "waiters": job_page.linked(self, request, job_page.waiters(config, row.key)),
            "waiting": count_up_to_cap(blocked),
            # An address would tell the key.
            "jobs_url": self.url_of_list(Job, backend=config.alias, concurrency_key=key) if key == row.key else "",
        }
