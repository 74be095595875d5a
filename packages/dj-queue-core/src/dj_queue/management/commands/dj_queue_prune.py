"""Deletes what is old: `manage.py dj_queue_prune`."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dj_queue.config import load_config
from dj_queue.operations import deletion, retention, schema
from dj_queue.operations.batches import Batches

_LONGEST = 100 * 365 * 86400


class Command(BaseCommand):
    help = "Delete old finished jobs, failed jobs and recurring executions, in batches, until none is left."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--backend", default="default", help="alias in TASKS (default: %(default)s)")
        parser.add_argument("--older-than", type=float, help="seconds; default: clear_finished_jobs_after")
        parser.add_argument("--failed-older-than", type=float, help="seconds; default: clear_failed_jobs_after")
        parser.add_argument(
            "--recurring-older-than", type=float, help="seconds; default: clear_recurring_executions_after"
        )
        parser.add_argument("--batch-size", type=int, default=retention.BATCH, help="rows a transaction")
        parser.add_argument("--task-path", help="only finished and failed jobs of this task")
        parser.add_argument("--task-key", help="only executions of this recurring task")
        parser.add_argument("--dry-run", action="store_true", help="count, and delete nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            config = load_config(options["backend"])
            schema.require_usable(config.database_alias)
            obstacle = schema.obstacle(config.database_alias)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if obstacle:
            raise CommandError(obstacle)
        batch = options["batch_size"]
        if batch < 1:
            raise CommandError(f"--batch-size must be at least 1, got {batch}.")
        ages = {
            "older_than": config.finished_kept_for,
            "failed_older_than": config.clear_failed_jobs_after,
            "recurring_older_than": config.clear_recurring_executions_after,
        }
        for name, default in tuple(ages.items()):
            age = ages[name] = default if options[name] is None else options[name]
            if age is not None and not 0 <= age <= _LONGEST:
                flag = f"--{name.replace('_', '-')}"
                raise CommandError(f"{flag} must be a number of seconds from 0 to {_LONGEST} (100 years), got {age:g}.")
        walk = retention.Walk()
        kept: dict[UUID, str] = {}
        path, key, dry = options["task_path"], options["task_key"], options["dry_run"]

        def count(
            age: float | None,
            what: str,
            matching: Callable[[float], int],
            delete: Callable[[float, int], int],
            ended: Callable[[], bool] | None = None,
        ) -> int:
            if age is None:
                return 0
            if dry:
                return matching(age)
            batches = Batches(config.database_alias, batch)
            return self._delete_all(what, batch, lambda: batches.run(lambda size: delete(age, size)), ended)

        finished = count(
            ages["older_than"],
            "finished jobs",
            lambda age: retention.finished(config, age, path).count(),
            lambda age, size: retention.delete_finished(
                config, older_than=age, batch_size=size, task_path=path, walk=walk, tell=kept.update
            ),
            lambda: walk.ended,
        )
        failed = count(
            ages["failed_older_than"],
            "failed jobs",
            lambda age: retention.failed(config, age, path).count(),
            lambda age, size: retention.delete_failed(
                config, older_than=age, batch_size=size, task_path=path, tell=kept.update
            ),
        )
        recurring = count(
            ages["recurring_older_than"],
            "recurring executions",
            lambda age: retention.recurring(config, age, key).count(),
            lambda age, size: retention.delete_recurring(config, older_than=age, batch_size=size, task_key=key),
        )
        verb = "would delete" if dry else "deleted"
        self.stdout.write(
            f"{verb} {finished} finished jobs, {failed} failed jobs, and {recurring} recurring executions"
        )
        if kept:
            self.stderr.write(deletion.describe_kept(kept))

    def _delete_all(self, what: str, batch: int, delete: Callable[[], int], ended: Callable[[], bool] | None) -> int:
        total = told = 0
        while True:
            deleted = delete()
            total += deleted
            if total - told >= 20 * batch:
                told = total
                self.stderr.write(f"{total} {what} so far")
            if ended() if ended else not deleted:
                return total
