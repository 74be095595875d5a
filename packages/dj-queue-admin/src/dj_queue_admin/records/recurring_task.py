"""Recurring tasks: when they ran and will run; run one now, unschedule dynamic ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.tasks.exceptions import InvalidTask
from django.utils.html import format_html
from django.utils.safestring import SafeString

from dj_queue.config import BackendConfig
from dj_queue.exceptions import EnqueueError, TaskPathError
from dj_queue.models import Job, Process, RecurringExecution, RecurringTask
from dj_queue.operations import recurring, schedule
from dj_queue_admin import audit, backends, hooks, liveness, permissions, tasks
from dj_queue_admin.permissions import Verb
from dj_queue_admin.records import filters, job_page, shown
from dj_queue_admin.records.cells import counted, link, moment
from dj_queue_admin.records.listing import Found, count_up_to_cap
from dj_queue_admin.records.record import Button, RecordAdmin
from dj_queue_admin.redaction import redaction

NEXT: Final = 5
LAST: Final = 20
NOBODY: Final = "no scheduler"


class RecurringTaskAdmin(RecordAdmin):
    list_display = ("name", "task", "when", "next_run", "queue", "origin")
    list_display_links = None
    actions = ("unschedule_tasks",)
    search_fields = ("key",)
    search_help_text = "Text of a key or of a task's path."
    verbs = ("run", "unschedule")
    action_verbs = {"unschedule_tasks": "unschedule"}  # noqa: RUF012
    filters_template = "dj_queue_admin/records/recurring_filters.html"
    detail_template = "dj_queue_admin/records/recurring_task.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[RecurringTask]:
        return super().get_queryset(request).defer("payload")

    # ---- the list -----------------------------------------------------------------------------------

    def find(self, request: HttpRequest, text: str) -> Found:
        given = filters.given(request.GET)
        queue, static = given["queue"], given["static"]
        rows = self.get_queryset(request).order_by("key")
        mistakes = ("The filter holds a character that no database stores",) if "\0" in queue + text else ()
        if mistakes:
            rows = rows.none()
        if queue:
            rows = rows.filter(queue_name=queue)
        if static in ("0", "1"):
            rows = rows.filter(static=static == "1")
        if text:
            rows = rows.filter(Q(key__icontains=text) | Q(task_path__icontains=text))
        return Found(rows, count_up_to_cap(rows), "", mistakes)

    def load(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        now = recurring.now(backends.selected(request))
        schedulers = liveness.live(backends.selected(request), Process.Kind.SCHEDULER) if rows else []
        for row in rows:
            row.now = now
            row.promised = any(liveness.fires(scheduler, row) for scheduler in schedulers)
        return list(rows)

    @admin.display(description="Key")
    def name(self, row: RecurringTask) -> SafeString:
        return link(self.url_of(row), shown.visible(row.key, longest=255, lines=False))

    @admin.display(description="Task")
    def task(self, row: RecurringTask) -> str:
        return shown.visible(row.task_path, longest=255, lines=False)

    @admin.display(description="Schedule")
    def when(self, row: RecurringTask) -> SafeString:
        zone = format_html(" <small>{}</small>", row.timezone) if row.timezone else ""
        return format_html("<code>{}</code>{}", shown.visible(row.schedule, lines=False), zone)

    @admin.display(description="Next run")
    def next_run(self, row: Any) -> SafeString:
        if not row.promised:
            return format_html('<span class="djq-warning">{}</span>', NOBODY)
        return moment(next(iter(next_runs(row, row.now, 1)), None))

    @admin.display(description="Queue")
    def queue(self, row: RecurringTask) -> str:
        return shown.visible(row.queue_name, lines=False)

    @admin.display(description="From")
    def origin(self, row: RecurringTask) -> str:
        return "settings" if row.static else "run time"

    # ---- a task's page ------------------------------------------------------------------------------

    def detail(self, request: HttpRequest, config: BackendConfig, row: RecurringTask) -> dict[str, Any]:
        using = config.database_alias
        call = shown.read_field(RecurringTask.objects.using(using).filter(pk=row.pk), "payload")
        readable = not isinstance(call, shown.Unreadable)
        contents = permissions.may_read(request, RecurringTask)
        arguments = redaction().call(row.task_path, call, most=job_page.ARGUMENTS) if readable and contents else []
        ticks = RecurringExecution.objects.using(using).filter(backend_alias=config.alias, task_key=row.key)
        last = list(ticks.order_by("-run_at").values_list("run_at", "job_id")[:LAST])
        ran = Job.objects.using(using).filter(pk__in=[job_id for _, job_id in last if job_id])
        rows = hooks.seen(self.admin_site, request, Job, ran)
        jobs = {job.pk: job for job in rows.select_related(*job_page.STATE_ROWS).defer(*job_page.JSON_FIELDS)}
        dynamic = config.scheduler is not None and config.scheduler.dynamic_tasks_enabled
        schedulers = liveness.live(config, Process.Kind.SCHEDULER)
        return {
            "unpromised": not any(liveness.fires(scheduler, row) for scheduler in schedulers),
            "command": liveness.command(config.alias),
            "obstacle": shown.visible(tasks.look(row.task_path).obstacle, longest=500, lines=False),
            "contents": contents,
            "unreadable": "" if readable else f"Not shown: {call.why}.",
            "arguments": [(each, shown.pretty(each.value)) for each in arguments],
            "more_arguments": redaction().count(call) - len(arguments) if arguments else 0,
            "next_runs": next_runs(row, recurring.now(config), NEXT),
            "asleep": not row.static and not dynamic,
            "last_runs": [(run_at, jobs.get(job_id), self._job_url(jobs.get(job_id))) for run_at, job_id in last],
            "jobs_url": self.url_of_list(Job, backend=config.alias, recurring_task_key=row.key),
        }

    def _job_url(self, job: Job | None) -> str:
        return self.url_of(job) if job else ""

    def buttons(self, request: HttpRequest, row: RecurringTask) -> list[Button]:
        offered = [Button("run", "Run now")]
        if not row.static:
            offered.append(Button("unschedule", "Unschedule", destructive=True))
        return offered

    def act(self, request: HttpRequest, config: BackendConfig, row: RecurringTask, verb: Verb) -> HttpResponse:
        return self._run(request, config, row) if verb == "run" else self._unschedule(request, config, row)

    def _run(self, request: HttpRequest, config: BackendConfig, row: RecurringTask) -> HttpResponse:
        try:
            result = recurring.enqueue_now(row.key, backend_alias=config.alias)
        except RecurringTask.DoesNotExist:
            return self.gone(request, config)
        except (EnqueueError, TaskPathError, InvalidTask) as error:
            messages.error(request, f"Nothing was enqueued: {shown.visible(str(error), longest=1_000)}")
            return self.back(request, row)
        audit.record(request, [row], f"Ran now, as job {result.id}.")
        job = Job(pk=result.id, backend_alias=config.alias)
        messages.success(request, format_html("Enqueued {}.", link(self.url_of(job), result.id)))
        return self.back(request, row)

    def _unschedule(self, request: HttpRequest, config: BackendConfig, row: RecurringTask) -> HttpResponse:
        if recurring.unschedule(row.key, backend_alias=config.alias):
            audit.record(request, [row], "Unscheduled.", deleted=True)
            messages.success(request, f"Unscheduled {row.key}.")
            return HttpResponseRedirect(self.url_of_list(backend=config.alias))
        text = f"{row.key} was not unscheduled: {_why_not(row)}."
        messages.warning(request, text)
        return self.back(request, row)

    # ---- actions of the list ------------------------------------------------------------------------

    @admin.action(description="Unschedule")
    def unschedule_tasks(self, request: HttpRequest, queryset: QuerySet[RecurringTask]) -> None:
        config = backends.selected(request)
        selected = request.POST.getlist("_selected_action")
        rows = queryset.filter(pk__in=[pk for pk in selected if pk.isdecimal()])[: self.list_per_page]
        gone = [row for row in rows if recurring.unschedule(row.key, backend_alias=config.alias)]
        if gone:
            audit.record(request, gone, "Unscheduled.", deleted=True)
            messages.success(request, f"Unscheduled {counted(len(gone), 'task')}.")
        if left := len(selected) - len(gone):
            why = "configured in the settings, or gone already"
            messages.warning(request, f"Left {counted(left, 'task')} alone: {why}.")


def next_runs(row: RecurringTask, now: datetime, count: int) -> list[datetime]:
    """The next ticks; none for a schedule that croniter refuses, which only a hand-made row has."""
    ticks: list[datetime] = []
    try:
        while len(ticks) < count:
            tick = schedule.next_tick(row.schedule, row.timezone, ticks[-1] if ticks else now)
            if tick is None:
                break
            ticks.append(tick)
    except Exception:  # another library's parser, on unchecked text
        return []
    return ticks


def _why_not(row: RecurringTask) -> str:
    return "it is configured in the settings, and can be removed only there" if row.static else "it is gone already"
