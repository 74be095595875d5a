"""Semaphores: which concurrency keys are limited, who holds a slot, and who waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.models import BlockedExecution, Job, Semaphore
from dj_queue_admin import backends
from dj_queue_admin.records import job_page, shown
from dj_queue_admin.records.cells import link, moment
from dj_queue_admin.records.listing import Found, count_up_to_cap
from dj_queue_admin.records.record import RecordAdmin
from dj_queue_admin.records.selection import WINDOW


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
        found = rows.filter(key__icontains=text, pk__gt=oldest or 0).order_by("-pk")
        note = f"Searched the newest {WINDOW:,} semaphores." if oldest else ""
        return Found(found, count_up_to_cap(found), note)

    def load(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        alias = backends.selected(request).alias
        for row in rows:
            row.shown_for = alias
        return list(rows)

    @admin.display(description="Concurrency key")
    def name(self, row: Any) -> SafeString:
        return link(self.url_of(row, backend=row.shown_for), shown.visible(row.key, longest=255, lines=False))

    @admin.display(description="Free slots")
    def free(self, row: Semaphore) -> str:
        return f"{row.value} of {row.limit}"

    @admin.display(description="Expires")
    def expires(self, row: Semaphore) -> SafeString:
        return moment(row.expires_at)

    def detail(self, request: HttpRequest, config: BackendConfig, row: Semaphore) -> dict[str, Any]:
        blocked = BlockedExecution.objects.using(config.database_alias).filter(concurrency_key=row.key)
        return {
            "key": shown.visible(row.key, longest=255, lines=False),
            "holders": job_page.linked(self, request, job_page.holders(config, row.key)),
            "waiters": job_page.linked(self, request, job_page.waiters(config, row.key)),
            "waiting": count_up_to_cap(blocked),
            "jobs_url": self.url_of_list(Job, backend=config.alias, concurrency_key=row.key),
        }
