"""Failed jobs: the list, the page of one, and all of them by exception and task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib import admin
from django.db.models import Count, Max, Min, QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.models import FailedExecution, Job
from dj_queue_admin import backends, hooks, permissions
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import bulk, filters, job, job_page, shown
from dj_queue_admin.records.cells import link, moment
from dj_queue_admin.records.listing import Found
from dj_queue_admin.records.record import Button, RecordAdmin
from dj_queue_admin.records.selection import Selection
from dj_queue_admin.redaction import redaction
from dj_queue_admin.views import page

GROUPED: Final = 10_000  # failures that are put into groups
GROUPS: Final = 100  # groups that are shown

_MESSAGE = 300  # characters of one that a list shows
_READ = 70_000  # and that it reads: no message is stored longer


@dataclass(frozen=True)
class Group:
    """Failures with the same exception of the same task."""

    exception_class: str
    task_path: str
    count_text: str
    first: datetime
    last: datetime
    message: str
    list_url: str
    retry_url: str
    discard_url: str


class FailedExecutionAdmin(RecordAdmin):
    list_display = ("failure", "task", "queue", "failed")
    list_display_links = None
    actions = ("retry_jobs", "discard_jobs")
    search_fields = ("id",)  # shows Django's search box; what it finds is a selection
    search_help_text = "A job's id, or text of its task's path, arguments, exception and message."
    verbs = ("retry", "discard")
    action_verbs = {"retry_jobs": "retry", "discard_jobs": "discard"}  # noqa: RUF012
    across = True
    filters_template = "dj_queue_admin/records/failure_filters.html"
    detail_template = "dj_queue_admin/records/job.html"

    def extra_urls(self) -> list[URLPattern]:
        name = "dj_queue_failedexecution_groups"
        return [path("groups/", page(self, self.groups_view), name=name), *bulk.urls(self)]

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedExecution]:
        heavy = [f"job__{field}" for field in job_page.JSON_FIELDS]
        rows = super().get_queryset(request).select_related("job").defer(*heavy)
        mine = hooks.chosen(self.admin_site, request, Job)
        return rows if mine is None else rows.filter(job_id__in=mine)

    # ---- the list -----------------------------------------------------------------------------------

    def select(self, request: HttpRequest, text: str) -> Selection:
        config = backends.selected(request)
        contents = permissions.may_read(request, FailedExecution)
        wanted = filters.read(request.GET, config, contents=contents, text=text, status="failed")
        return bulk.narrowed(self, request, wanted)

    def find(self, request: HttpRequest, text: str) -> Found:
        wanted = self.select(request, text)
        return Found(wanted.found, wanted.count, wanted.note, wanted.mistakes)

    def load(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        config = backends.selected(request)
        heavy = [f"job__{field}" for field in job_page.JSON_FIELDS]
        failures = FailedExecution.objects.using(config.database_alias).filter(job_id__in=rows)
        found: QuerySet[Any] = failures.select_related("job").defer("message", "traceback", *heavy)
        if permissions.may_read(request, FailedExecution):
            found = found.annotate(message_text=Left("message", _READ))
            found = shown.as_text(found, shown.LONGEST_IN_LIST, payload_text="job__payload")
        by_id = {row.job_id: row for row in found}
        return [by_id[job_id] for job_id in rows if job_id in by_id]

    def filters(self, request: HttpRequest, config: BackendConfig) -> dict[str, Any]:
        return {"groups_url": self._groups_url(config)}

    @admin.display(description="Exception and message")
    def failure(self, row: Any) -> SafeString:
        name = shown.visible(row.exception_class, longest=255, lines=False)
        return format_html("{}<br>{}", link(self.url_of(row), name), message_of(row))

    @admin.display(description="Task and arguments")
    def task(self, row: Any) -> SafeString:
        row.job.payload_text = getattr(row, "payload_text", None)
        path = shown.visible(row.job.task_path, longest=200, lines=False)
        return format_html("{}<br>{}", link(self.url_of(row.job), path), job.arguments(row.job))

    @admin.display(description="Queue")
    def queue(self, row: FailedExecution) -> SafeString:
        address = self.url_of_list(backend=row.backend_alias, queue=row.queue_name)
        return link(address, shown.visible(row.queue_name, lines=False))

    @admin.display(description="Failed")
    def failed(self, row: FailedExecution) -> SafeString:
        return moment(row.created_at)

    # ---- a failure's page ---------------------------------------------------------------------------

    def detail(self, request: HttpRequest, config: BackendConfig, row: FailedExecution) -> dict[str, Any]:
        if hooks.may_see(self.admin_site, request, Job):
            hooks.require(self.admin_site, request, Job, row.job)
        found = job_page.describe(self, request, config, row.job.pk)
        return {**found, "job_url": self.url_of(row.job)} if found else {}

    def buttons(self, request: HttpRequest, row: FailedExecution) -> list[Button]:
        return [Button("retry", "Retry"), Button("discard", "Discard", destructive=True)]

    def act(self, request: HttpRequest, config: BackendConfig, row: FailedExecution, verb: Verb) -> HttpResponse:
        do = job.retry if verb == "retry" else job.discard
        return do(self, request, config, row.job)

    # ---- actions of the list ------------------------------------------------------------------------

    @admin.action(description="Retry")
    def retry_jobs(self, request: HttpRequest, queryset: QuerySet[FailedExecution]) -> HttpResponse | None:
        return job.act_on_selected(self, request, queryset, "retry")

    @admin.action(description="Discard")
    def discard_jobs(self, request: HttpRequest, queryset: QuerySet[FailedExecution]) -> HttpResponse | None:
        return job.act_on_selected(self, request, queryset, "discard")

    # ---- groups -------------------------------------------------------------------------------------

    def groups_view(self, request: HttpRequest) -> HttpResponse:
        """The newest failures by exception and task, the most frequent first."""
        config = backends.selected(request)
        hooks.require(self.admin_site, request, FailedExecution)
        rows = FailedExecution.objects.using(config.database_alias)
        oldest = rows.order_by("-pk").values_list("pk", flat=True)[GROUPED : GROUPED + 1].first()
        looked = rows.filter(backend_alias=config.alias)
        if oldest is not None:
            looked = looked.filter(pk__gt=oldest)
        looked = hooks.seen(self.admin_site, request, FailedExecution, looked)
        if (mine := hooks.chosen(self.admin_site, request, Job)) is not None:
            looked = looked.filter(job_id__in=mine)
        found = looked.values("exception_class", "job__task_path")
        counted = found.annotate(
            count=Count("pk"), first=Min("created_at"), last=Max("created_at"), newest=Max("pk")
        ).order_by("-count", "exception_class")[: GROUPS + 1]
        groups: list[Any] = list(counted)
        messages = self._messages(request, config, [group["newest"] for group in groups])
        context = {
            **self._page(request, config, "Failed jobs by exception and task").context,
            "groups": [self._group(config, group, messages.get(group["newest"], "")) for group in groups[:GROUPS]],
            "more_groups": len(groups) > GROUPS,
            "most_groups": GROUPS,
            "looked_text": f"{GROUPED:,}",
            "cut": oldest is not None,
            "may_retry": permissions.may(request, "retry", FailedExecution),
            "may_discard": permissions.may(request, "discard", FailedExecution),
            "list_url": self.url_of_list(backend=config.alias),
        }
        return render(request, "dj_queue_admin/records/failed_groups.html", context)

    def _messages(self, request: HttpRequest, config: BackendConfig, newest: Sequence[int]) -> dict[int, SafeString]:
        if not permissions.may_read(request, FailedExecution):
            return {}
        rows: QuerySet[Any] = FailedExecution.objects.using(config.database_alias).filter(pk__in=newest)
        rows = rows.annotate(message_text=Left("message", _READ))
        rows = shown.as_text(rows, shown.LONGEST_IN_LIST, payload_text="job__payload")
        rows = rows.select_related("job").only("pk", "job__task_path")
        return {row.pk: message_of(row) for row in rows}

    def _group(self, config: BackendConfig, found: dict[str, Any], message: str) -> Group:
        query = {
            "backend": config.alias,
            "exception_class": found["exception_class"],
            "task": found["job__task_path"],
        }
        return Group(
            shown.visible(found["exception_class"], longest=255, lines=False),
            shown.visible(found["job__task_path"], longest=200, lines=False),
            f"{found['count']:,}",
            found["first"],
            found["last"],
            message,
            self.url_of_list(**query),
            bulk.address(self, "retry", **query),
            bulk.address(self, "discard", **query),
        )

    def _groups_url(self, config: BackendConfig) -> str:
        address = reverse("admin:dj_queue_failedexecution_groups", current_app=self.admin_site.name)
        return self._with(address, {"backend": config.alias})


def message_of(row: Any) -> SafeString:
    """A failure's message on one line, without what is hidden in its job's arguments."""
    text = getattr(row, "message_text", None)
    if text is None:
        return SafeString("")
    call = shown.parse(row.payload_text, shown.LONGEST_IN_LIST)
    if isinstance(call, shown.Unreadable):
        note = "message not shown here: its arguments cannot be looked through for hidden values"
        return format_html('<span class="djq-note">{}</span>', note)
    text = redaction().secrets(row.job.task_path, call).hide(text)
    line = shown.visible(" ".join(text.split()), longest=_MESSAGE, lines=False)
    return format_html('<span class="djq-message">{}</span>', line)
