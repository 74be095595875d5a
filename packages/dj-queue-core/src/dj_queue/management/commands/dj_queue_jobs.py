"""Shows stored jobs and acts on failed ones: `manage.py dj_queue_jobs`."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import QuerySet

from dj_queue.api import discard_failed_jobs, retry_failed_jobs
from dj_queue.config import BackendConfig, load_config
from dj_queue.models import STATES, Job
from dj_queue.operations import readable, results, schema

_COLUMNS = ("id", "state", "task", "queue", "priority", "enqueued_at")


class Command(BaseCommand):
    help = "List stored jobs, show one, and retry or discard failed ones."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        listing = verbs.add_parser("list", help="the newest jobs first")
        _add_filters(listing)
        listing.add_argument("--state", choices=STATES, help="only jobs in this state")
        listing.add_argument("--limit", type=int, default=50, help="the most jobs to list (default: %(default)s)")
        show = verbs.add_parser("show", help="one job as a whole")
        show.add_argument("job_id", help="its id")
        for verb, text in (("retry", "let failed jobs run again"), ("discard", "delete failed jobs")):
            action = verbs.add_parser(verb, help=text)
            action.add_argument("job_ids", nargs="*", metavar="job_id", help="the ids of failed jobs")
            action.add_argument("--all", action="store_true", help="every failed job that the filters leave")
            _add_filters(action)
        for each in verbs.choices.values():
            each.add_argument("--backend", default="default", help="alias in TASKS (default: %(default)s)")
            each.add_argument("--format", choices=("text", "json"), default="text", help="default: %(default)s")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            config = load_config(options["backend"])
            schema.require_usable(config.database_alias)
            obstacle = schema.obstacle(config.database_alias)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if obstacle:
            raise CommandError(obstacle)
        match options["verb"]:
            case "list":
                self._list(config, options)
            case "show":
                self._show(config, options)
            case verb:
                self._act(config, verb, options)

    def _list(self, config: BackendConfig, options: dict[str, Any]) -> None:
        limit = options["limit"]
        if limit < 1:
            raise CommandError(f"--limit must be at least 1, got {limit}.")
        rows = _filtered(config, options)
        if state := options["state"]:
            rows = getattr(rows, state)()
        found, lost = readable.read(rows.order_by("-id").select_related(*_executions())[:limit])
        if options["format"] == "json":
            self.stdout.write(json.dumps([_line(job) for job in found], indent=2, default=str))
        else:
            lines = [{key: str(value) for key, value in _line(job).items()} for job in found]
            widths = {name: max([len(name), *(len(line[name]) for line in lines)]) for name in _COLUMNS}
            for line in [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *lines]:
                self.stdout.write("  ".join(line[name].ljust(widths[name]) for name in _COLUMNS).rstrip())
        for job_id in lost:
            self.stderr.write(f"the job {job_id} cannot be read")

    def _show(self, config: BackendConfig, options: dict[str, Any]) -> None:
        job_id = _ids([options["job_id"]])[0]
        rows = Job.objects.using(config.database_alias).filter(pk=job_id, backend_alias=config.alias)
        found, lost = readable.read(rows.select_related(*_executions()))
        if lost:
            raise CommandError(f"the job {job_id} cannot be read: correct its row, or delete it.")
        if not found:
            raise CommandError(f"the backend {config.alias!r} has no job {job_id}. It may be finished and cleaned up.")
        whole = _whole(config, found[0])
        if options["format"] == "json":
            self.stdout.write(json.dumps(whole, indent=2, default=str))
            return
        errors = whole.pop("errors")
        for key, value in whole.items():
            self.stdout.write(f"{key}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
        for number, error in enumerate(errors, 1):
            self.stdout.write(f"\nerror {number} of {len(errors)}: {error}")

    def _act(self, config: BackendConfig, verb: str, options: dict[str, Any]) -> None:
        job_ids = _ids(options["job_ids"])
        filters = {name: options[name] for name in ("queue", "task") if options[name]}
        if bool(job_ids) == bool(options["all"] or filters):
            raise CommandError(f"say what to {verb}: ids of jobs, or --all, --queue or --task.")
        if filters:
            job_ids = list(_filtered(config, options).failed().values_list("pk", flat=True))
        chosen = None if options["all"] and not filters else job_ids
        act = retry_failed_jobs if verb == "retry" else discard_failed_jobs
        count = act(job_ids=chosen, backend_alias=config.alias)
        done = "retried" if verb == "retry" else "discarded"
        if options["format"] == "json":
            self.stdout.write(json.dumps({done: count}))
        else:
            self.stdout.write(f"{done} {count} of {len(job_ids) if chosen is not None else count} failed jobs")


def _add_filters(parser: Any) -> None:
    parser.add_argument("--queue", help="only jobs of this queue")
    parser.add_argument("--task", help="only jobs of this task: its path")


def _filtered(config: BackendConfig, options: dict[str, Any]) -> Any:
    rows: QuerySet[Job] = Job.objects.using(config.database_alias).filter(backend_alias=config.alias)
    if options["queue"]:
        rows = rows.filter(queue_name=options["queue"])
    if options["task"]:
        rows = rows.filter(task_path=options["task"])
    return rows


def _executions() -> list[str]:
    return [f"{state}_execution" for state in STATES[:-1]]


def _ids(texts: Sequence[str]) -> list[UUID]:
    ids = []
    for text in texts:
        try:
            ids.append(UUID(text))
        except ValueError:
            raise CommandError(f"expected the id of a job, a UUID, got {text!r}.") from None
    return ids


def _line(job: Job) -> dict[str, Any]:
    values = (job.id, job.status, job.task_path, job.queue_name, job.priority, job.created_at)
    return dict(zip(_COLUMNS, values, strict=True))


def _whole(config: BackendConfig, job: Job) -> dict[str, Any]:
    result = results.get(config, str(job.id))
    return {
        **_line(job),
        "args": result.args,
        "kwargs": result.kwargs,
        "concurrency_key": job.concurrency_key,
        "scheduled_at": job.scheduled_at,
        "started_at": result.started_at,
        "last_attempted_at": result.last_attempted_at,
        "finished_at": result.finished_at,
        "worker_ids": result.worker_ids,
        "return_value": job.return_value,
        "errors": [f"{each.exception_class_path}\n{each.traceback}" for each in result.errors],
    }
