"""Recurring tasks are enqueued when they are due, and what may be deleted is deleted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from dj_queue.config import BackendConfig, SchedulerConfig
from dj_queue.exceptions import AlreadyRecorded
from dj_queue.models import Process, RecurringTask
from dj_queue.operations import recurring, retention
from dj_queue.operations.schedule import aware, latest_tick, next_tick
from dj_queue.runtime.board import Board
from dj_queue.runtime.process import DATABASE_AWAY, Runner
from dj_queue.thread_errors import report

logger = logging.getLogger("dj_queue")

# A tick that nobody was there to enqueue is made up for if it is younger than this; older ones are skipped.
MISSED = timedelta(days=1)

_TRY_AGAIN = timedelta(minutes=1)
_NEVER = datetime.max.replace(tzinfo=UTC)


class Next(NamedTuple):
    """When a task fires next; void once its row changes."""

    updated_at: datetime
    at: datetime


class Scheduler(Runner):
    kind = Process.Kind.SCHEDULER

    def __init__(
        self,
        config: BackendConfig,
        options: SchedulerConfig,
        name: str,
        supervisor_id: int | None = None,
        board: Board | None = None,
    ) -> None:
        super().__init__(config, name, supervisor_id, board)
        self.options = options
        self._next: dict[int, Next] = {}
        self._clean_at = 0.0
        keep = config.clear_finished_jobs_after if config.preserve_finished_jobs else None
        self._finished = None if keep is None else retention.Retention(config, keep)

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "dynamic_tasks_enabled": self.options.dynamic_tasks_enabled,
            "polling_interval": self.options.polling_interval,
            "static_task_count": len(self.config.recurring),
            "cleanup_enabled": self.config.cleanup_enabled,
        }

    def step(self) -> float:
        now = recurring.now(self.config)
        tasks = recurring.tasks(self.config)
        self._next = {task.pk: self._next[task.pk] for task in tasks if task.pk in self._next}
        for task in tasks:
            self._guard(task, now, lambda task=task: self._fire_if_due(task, now))  # type: ignore[misc]
        if time.monotonic() >= self._clean_at:
            more = self._clean()
            self._clean_at = time.monotonic() + (0.0 if more else self.options.polling_interval)
        return self._pause(now)

    def _guard(self, task: RecurringTask, now: datetime, call: Callable[[], None]) -> None:
        """A task that cannot be enqueued stops only itself. It is tried again, and told of, once a minute."""
        try:
            call()
        except DATABASE_AWAY:
            self._next.pop(task.pk, None)  # not tried: the tick is still to come
            raise
        except Exception as error:
            planned = self._next.get(task.pk)
            again = now + _TRY_AGAIN
            at = min(planned.at, again) if planned and planned.at > now else again
            self._next[task.pk] = Next(task.updated_at, at)
            report(self.config, error, f"scheduler.run:{task.key}")

    def _fire_if_due(self, task: RecurringTask, now: datetime) -> None:
        known = self._next.get(task.pk)
        new = known is None or known.updated_at != task.updated_at
        if known is not None and not new and now < known.at:
            return
        due = latest_tick(task.schedule, task.timezone, now)
        # Planned before it is tried: what cannot be planned is not fired.
        self._next[task.pk] = Next(task.updated_at, next_tick(task.schedule, task.timezone, now) or _NEVER)
        # A task's first tick is the next one. What is new to this scheduler may have been there, and missed one.
        if due is None or due <= aware(task.updated_at) or (new and recurring.was_recorded(self.config, task, due)):
            return
        self._fire(task, due, now)

    def _fire(self, task: RecurringTask, due: datetime, now: datetime) -> None:
        if now - due > MISSED:
            logger.warning("dj_queue %s: skipped %s, missed at %s: too long ago", self.name, task.key, due)
            return
        try:
            recurring.enqueue_tick(self.config, task, due)
        except AlreadyRecorded:
            return  # another scheduler was first
        last = recurring.last_before(self.config, task, due)
        since = aware(task.updated_at)
        first = next_tick(task.schedule, task.timezone, max(last or since, since))
        if first is not None and first < due:
            logger.warning(
                "dj_queue %s: skipped %s from %s on, and made up for the last that was missed, at %s",
                self.name,
                task.key,
                first,
                due,
            )

    def _clean(self) -> bool:
        """Delete one batch of each kind; return whether more is left."""
        config = self.config
        counts = []
        if self._finished is not None:
            counts.append(self._finished.delete_batch())
        if config.clear_failed_jobs_after is not None:
            counts.append(retention.delete_failed(config, older_than=config.clear_failed_jobs_after))
        if config.clear_recurring_executions_after is not None:
            counts.append(retention.delete_recurring(config, older_than=config.clear_recurring_executions_after))
        return any(count == retention.BATCH for count in counts)

    def _pause(self, now: datetime) -> float:
        pause = min(self.options.polling_interval, max(0.0, self._clean_at - time.monotonic()) or 0.05)
        if self._next:
            until_next = (min(known.at for known in self._next.values()) - now).total_seconds()
            pause = min(pause, max(0.0, until_next))
        return pause
