"""Pauses: which queues are not claimed from, and an end to it."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.models import Job, Pause
from dj_queue.operations import queues, recurring
from dj_queue_admin import audit
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import shown
from dj_queue_admin.records.cells import link, moment, since
from dj_queue_admin.records.listing import Found, count_up_to_cap
from dj_queue_admin.records.record import Button, RecordAdmin


class PauseAdmin(RecordAdmin):
    list_display = ("queue", "paused")
    list_display_links = None
    verbs = ("resume",)
    detail_template = "dj_queue_admin/records/pause.html"

    def find(self, request: HttpRequest, text: str) -> Found:
        rows = self.get_queryset(request).order_by("queue_name")
        return Found(rows, count_up_to_cap(rows))

    @admin.display(description="Queue")
    def queue(self, row: Pause) -> SafeString:
        return link(self.url_of(row), shown.visible(row.queue_name, lines=False))

    @admin.display(description="Paused")
    def paused(self, row: Pause) -> SafeString:
        return moment(row.created_at)

    def detail(self, request: HttpRequest, config: BackendConfig, row: Pause) -> dict[str, Any]:
        return {
            "paused_for": since(row.created_at, recurring.now(config)),
            "queue": shown.visible(row.queue_name, lines=False),
            "ready_url": self.url_of_list(Job, backend=config.alias, queue=row.queue_name, status="ready"),
        }

    def buttons(self, request: HttpRequest, row: Pause) -> list[Button]:
        return [Button("resume", "Resume")]

    def act(self, request: HttpRequest, config: BackendConfig, row: Pause, verb: Verb) -> HttpResponse:
        queues.resume(config, row.queue_name)
        audit.record(request, [row], f"Resumed the queue {row.queue_name}.", deleted=True)
        messages.success(request, f"Resumed the queue {row.queue_name}.")
        return HttpResponseRedirect(self.url_of_list(backend=config.alias))
