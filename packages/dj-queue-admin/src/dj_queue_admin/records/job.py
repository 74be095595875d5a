"""Jobs: the list with its filters and search, and the page of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils.html import format_html
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.models import STATES, FailedExecution, Job
from dj_queue.operations import jobs
from dj_queue_admin import audit, backends, hooks, permissions
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import bulk, filters, job_page, shown, verbs
from dj_queue_admin.records.cells import badge, counted, link, moment
from dj_queue_admin.records.listing import Found
from dj_queue_admin.records.record import Button, RecordAdmin
from dj_queue_admin.records.selection import Selection
from dj_queue_admin.redaction import redaction
from dj_queue_admin.secrets import HIDDEN

WAITING = ("ready", "scheduled", "blocked")


class JobAdmin(RecordAdmin):
    list_display = ("task", "state", "queue", "enqueued", "last")
    list_display_links = None
    actions = ("retry_jobs", "discard_jobs")
    search_fields = ("id",)  # shows Django's search box; what it finds is a selection
    search_help_text = "A job's id, or text of its task's path and arguments."
    verbs = ("enqueue", "retry", "discard")
    action_verbs = {"retry_jobs": "retry", "discard_jobs": "discard"}  # noqa: RUF012
    across = True
    filters_template = "dj_queue_admin/records/job_filters.html"
    detail_template = "dj_queue_admin/records/job.html"

    def extra_urls(self) -> list[URLPattern]:
        return bulk.urls(self)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        return super().get_queryset(request).defer(*job_page.JSON_FIELDS)

    # ---- the list -----------------------------------------------------------------------------------

    def select(self, request: HttpRequest, text: str) -> Selection:
        config = backends.selected(request)
        contents = permissions.may_read(request, Job)
        return bulk.narrowed(self, request, filters.read(request.GET, config, contents=contents, text=text))

    def find(self, request: HttpRequest, text: str) -> Found:
        wanted = self.select(request, text)
        return Found(wanted.found, wanted.count, wanted.note, wanted.mistakes)

    def load(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        config = backends.selected(request)
        jobs_of_page = Job.objects.using(config.database_alias).filter(pk__in=rows).defer(*job_page.JSON_FIELDS)
        found: QuerySet[Job] = jobs_of_page.select_related(*job_page.STATE_ROWS)
        if permissions.may_read(request, Job):
            found = shown.as_text(found, shown.LONGEST_IN_LIST, payload_text="payload")
        by_id = {job.pk: job for job in found}
        return [by_id[job_id] for job_id in rows if job_id in by_id]

    def filters(self, request: HttpRequest, config: BackendConfig) -> dict[str, Any]:
        return {"states": STATES, "groups_url": self.url_of_list(FailedExecution, backend=config.alias)}

    @admin.display(description="Task and arguments")
    def task(self, job: Job) -> SafeString:
        path = shown.visible(job.task_path, longest=200, lines=False)
        return format_html("{}<br>{}", link(self.url_of(job), path), arguments(job))

    @admin.display(description="State")
    def state(self, job: Job) -> SafeString:
        return badge(job.status)

    @admin.display(description="Queue")
    def queue(self, job: Job) -> SafeString:
        address = self.url_of_list(backend=job.backend_alias, queue=job.queue_name)
        priority = format_html(" <small>priority {}</small>", job.priority) if job.priority else ""
        return format_html("{}{}", link(address, shown.visible(job.queue_name, lines=False)), priority)

    @admin.display(description="Enqueued")
    def enqueued(self, job: Job) -> SafeString:
        return moment(job.created_at)

    @admin.display(description="Since, or due")
    def last(self, job: Job) -> SafeString:
        state = job.status
        if state == "finished":
            return moment(job.finished_at)
        if state == "scheduled":
            return moment(job.scheduled_at)
        row = getattr(job, f"{state}_execution", None)
        return moment(row.created_at if row else None)

    # ---- a job's page -------------------------------------------------------------------------------

    def detail(self, request: HttpRequest, config: BackendConfig, row: Job) -> dict[str, Any]:
        return job_page.describe(self, request, config, row.pk) or {}

    def buttons(self, request: HttpRequest, row: Job) -> list[Button]:
        state = row.status
        offered = [Button("enqueue", "Enqueue again")]
        if state == "failed":
            offered.insert(0, Button("retry", "Retry"))
        if state == "failed" or state in WAITING:
            offered.append(Button("discard", "Discard", destructive=True))
        return offered

    def act(self, request: HttpRequest, config: BackendConfig, row: Job, verb: Verb) -> HttpResponse:
        match verb:
            case "enqueue":
                return self._enqueue(request, config, row)
            case "retry":
                return retry(self, request, config, row)
            case _:
                return discard(self, request, config, row)

    def _enqueue(self, request: HttpRequest, config: BackendConfig, job: Job) -> HttpResponse:
        try:
            copy = jobs.enqueue_job_again(job.pk, backend_alias=config.alias)
        except Job.DoesNotExist:
            return self.gone(request, config)
        audit.record(request, [job], f"Enqueued again, as {copy.pk}.")
        text = format_html("Enqueued a copy: {}.", link(self.url_of(copy), copy.pk))
        messages.success(request, text)
        return self.back(request, job)

    # ---- actions of the list ------------------------------------------------------------------------

    @admin.action(description="Retry the failed ones")
    def retry_jobs(self, request: HttpRequest, queryset: QuerySet[Job]) -> HttpResponse | None:
        return act_on_selected(self, request, queryset, "retry")

    @admin.action(description="Discard")
    def discard_jobs(self, request: HttpRequest, queryset: QuerySet[Job]) -> HttpResponse | None:
        return act_on_selected(self, request, queryset, "discard")


def arguments(job: Any) -> SafeString:
    """A job's arguments on one line, as far as the visitor may read them and lists read at all."""
    text = getattr(job, "payload_text", None)
    if text is None:
        return SafeString("")
    call = shown.parse(text, shown.LONGEST_IN_LIST)
    if isinstance(call, shown.Unreadable):
        return format_html('<span class="djq-note">arguments not shown here: {}</span>', call.why)
    line = shown.brief(redaction().call(job.task_path, call))
    return format_html('<code class="djq-arguments">{}</code>', line) if line else SafeString("")


def key_of(job: Any) -> str:
    """A job's concurrency key without what is hidden in its arguments, which it is made of."""
    if not job.concurrency_key:
        return ""
    text = getattr(job, "payload_text", None)
    call = None if text is None else shown.parse(text, shown.LONGEST_IN_LIST)
    if call is None or isinstance(call, shown.Unreadable):
        return HIDDEN
    return redaction().secrets(job.task_path, call).hide(job.concurrency_key)


# ---- what the pages and lists of jobs and of failures do ---------------------------------------------


def retry(model_admin: RecordAdmin, request: HttpRequest, config: BackendConfig, job: Job) -> HttpResponse:
    try:
        jobs.retry_failed_job(job.pk, backend_alias=config.alias)
    except FailedExecution.DoesNotExist:
        text = "This job is not failed (any more): it was retried or discarded meanwhile. Nothing was changed."
        messages.warning(request, text)
    else:
        audit.record(request, [job], "Retried.")
        messages.success(request, "The job will run again.")
    return HttpResponseRedirect(model_admin.url_of(job))


def discard(model_admin: RecordAdmin, request: HttpRequest, config: BackendConfig, job: Job) -> HttpResponse:
    if verbs.discard(config, [job.pk]):
        audit.record(request, [job], "Discarded.", deleted=True)
        messages.success(request, f"Discarded {job}.")
        return HttpResponseRedirect(model_admin.url_of_list(backend=config.alias))
    text = "This job neither waits nor is failed (any more): it runs, is done, or is gone. Nothing was changed."
    messages.warning(request, text)
    return HttpResponseRedirect(model_admin.url_of(job))


def act_on_selected(
    model_admin: RecordAdmin, request: HttpRequest, queryset: QuerySet[Any], verb: Verb
) -> HttpResponse | None:
    """Retry or discard what was ticked; for all that match the filter, ask first."""
    if request.POST.get("select_across") == "1":
        return HttpResponseRedirect(bulk.url(model_admin, request, verb))
    config = backends.selected(request)
    ids = list(queryset.values_list("pk" if queryset.model is Job else "job_id", flat=True))
    using = Job.objects.using(config.database_alias).filter(pk__in=ids, backend_alias=config.alias)
    rows = list(using.select_related(*job_page.STATE_ROWS).defer(*job_page.JSON_FIELDS))
    fit = [row for row in rows if row.failed or (verb == "discard" and row.status in WAITING)]
    site = model_admin.admin_site
    if hooks.may_see(site, request, Job):
        fit = [row for row in fit if hooks.may_see(site, request, Job, row)]
    fit_ids = [row.pk for row in fit]
    count = (verbs.retry if verb == "retry" else verbs.discard)(config, fit_ids) if fit else 0
    done = "Retried" if verb == "retry" else "Discarded"
    if count:
        audit.record(request, fit, f"{done}.", deleted=verb == "discard")
        messages.success(request, f"{done} {counted(count, 'job')}.")
    if left := len(request.POST.getlist("_selected_action")) - count:
        why = "not failed" if verb == "retry" else "running, done or gone"
        messages.warning(request, f"Left {counted(left, 'job')} alone: {why} (any more).")
    return None
