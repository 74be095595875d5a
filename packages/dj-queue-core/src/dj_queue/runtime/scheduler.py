"""Recurring tasks are enqueued when they are due, and what may be deleted is deleted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from django.db import Error

from dj_queue.config import BackendConfig, SchedulerConfig
from dj_queue.error_reporting import report
from dj_queue.exceptions import AlreadyRecorded
from dj_queue.models import Process, RecurringTask
from dj_queue.operations import recurring, retention, schedulers
from dj_queue.operations.batches import Batches
from dj_queue.operations.schedule import aware, latest_tick, next_tick
from dj_queue.runtime.part import Part
from dj_queue.runtime.runner import Runner
from dj_queue.runtime.shared_state import SharedState

logger = logging.getLogger("dj_queue")

_TRY_AGAIN = timedelta(minutes=1)
_NEVER = datetime.max.replace(tzinfo=UTC)

# How many different warnings are remembered as said.
_MOST_TOLD = 10_000


class Next(NamedTuple):
    """When a task fires next, as planned from its row."""

    schedule: str
    timezone: str | None
    updated_at: datetime | None  # None for a static task: other nodes may write its row anew
    since: datetime  # ticks up to here are none of this task's
    at: datetime

    def is_of(self, task: RecurringTask) -> bool:
        """Whether the slot holds for the row as it is now."""
        return self[:3] == _planned_from(task)


def _planned_from(task: RecurringTask) -> tuple[str, str | None, datetime | None]:
    return task.schedule, task.timezone, None if task.static else task.updated_at


class Scheduler(Runner):
    kind = Process.Kind.SCHEDULER

    def __init__(
        self,
        config: BackendConfig,
        options: SchedulerConfig,
        name: str,
        supervisor_id: int | None = None,
        shared: SharedState | None = None,
    ) -> None:
        super().__init__(config, name, supervisor_id, shared)
        self.options = options
        self._next: dict[str, Next] = {}
        self._seen: datetime | None = None  # the database's clock at the last step
        self._told: set[str] = set()
        self._clean_at = 0.0
        self._fires = Part(config, "scheduler.run")
        # What the database refuses to delete of one kind holds up no other.
        self._cleanings = [(Part(config, "scheduler.clean"), delete) for delete in self._cleaning()]

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "dynamic_tasks_enabled": self.options.dynamic_tasks_enabled,
            "polling_interval": self.options.polling_interval,
            "static_task_count": len(self.config.recurring),
            "cleanup_enabled": self.config.cleanup_enabled,
            schedulers.STATIC_TASKS: schedulers.metadata(self.config),
        }

    def step(self) -> float:
        now = self._fires(self._fire_all, None)
        if time.monotonic() >= self._clean_at:
            more = self._clean()
            self._clean_at = time.monotonic() + (0.0 if more else self.options.polling_interval)
        return self._pause(now)

    def _fire_all(self) -> datetime:
        """Fire what is due; return what time it is."""
        now = recurring.now(self.config)
        if self._seen is not None and now < self._seen:
            # What was planned while the clock was ahead would wait until that time has come.
            self._next.clear()
        self._seen = now
        tasks = recurring.tasks(self.config, process_id=self.process_id, tell=self._tell)
        self._next = {task.key: self._next[task.key] for task in tasks if task.key in self._next}
        for task in tasks:
            self._guard(task, now, lambda task=task: self._fire_if_due(task, now))  # type: ignore[misc]
        return now

    def _tell(self, text: str) -> None:
        """Warn once of each difference, however many polls find it."""
        if text not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(text)
            logger.warning("dj_queue %s of %r: %s", self.name, self.config.alias, text)

    def _guard(self, task: RecurringTask, now: datetime, call: Callable[[], None]) -> None:
        """A task that cannot be enqueued stops only itself. It is tried again, and told of, once a minute."""
        try:
            call()
        except Exception as error:
            if isinstance(error, Error) and self.dialect.is_away(error):
                self._next.pop(task.key, None)  # not tried: the tick is still to come
                raise
            known = self._next.get(task.key)
            again = now + _TRY_AGAIN
            if known is None:
                known = Next(*_planned_from(task), min(aware(task.updated_at), now), again)
            at = min(known.at, again) if known.at > now else again
            self._next[task.key] = known._replace(at=at)
            report(self.config, error, f"scheduler.run:{task.key}")

    def _fire_if_due(self, task: RecurringTask, now: datetime) -> None:
        known = self._next.get(task.key)
        if known is not None and not known.is_of(task):
            known = None
        if known is not None and now < known.at:
            return
        # A row that was written while the clock was ahead is no reason to be silent until then.
        since = known.since if known is not None else min(aware(task.updated_at), now)
        due = latest_tick(task.schedule, task.timezone, now)
        # Planned before it is tried: what cannot be planned is not fired.
        following = next_tick(task.schedule, task.timezone, now) or _NEVER
        self._next[task.key] = Next(*_planned_from(task), since, following)
        # A task's first tick is the next one. What is new to this scheduler may have been there, and missed one.
        if due is None or due <= since or (known is None and recurring.was_recorded(self.config, task, due, until=now)):
            return
        self._fire(task, due, since, now)

    def _fire(self, task: RecurringTask, due: datetime, since: datetime, now: datetime) -> None:
        if now - due > recurring.missed_after(self.config) and not recurring.catches_up(self.config, task):
            if not recurring.was_recorded(self.config, task, due, until=now):
                logger.warning(
                    "dj_queue %s: skipped %s, missed at %s: its catch_up is none. Set it to 'latest' if such a"
                    " tick is to be made up for.",
                    self.name,
                    task.key,
                    due,
                )
            return
        try:
            recurring.enqueue_tick(self.config, task, due)
        except AlreadyRecorded:
            return  # another scheduler was first
        last = recurring.last_before(self.config, task, due)
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
        full = [part(delete, False) for part, delete in self._cleanings]
        return any(full)

    def _cleaning(self) -> Iterator[Callable[[], bool]]:
        """For each kind, what deletes a batch of as many as the database accepts; it returns whether it was full."""
        for delete in self._deletions():
            batches = Batches(self.config.database_alias, retention.BATCH)
            yield partial(batches.run, lambda size, delete=delete: delete(batch_size=size) >= size)  # type: ignore[misc]

    def _deletions(self) -> Iterator[Callable[..., int]]:
        config = self.config
        if (keep := config.finished_kept_for) is not None:
            yield retention.Retention(config, keep).delete_batch
        if (failed := config.clear_failed_jobs_after) is not None:
            yield partial(retention.delete_failed, config, older_than=failed)
        if (ticks := config.clear_recurring_executions_after) is not None:
            yield partial(retention.delete_recurring, config, older_than=ticks)
        else:
            yield partial(retention.delete_jobless_ticks, config)

    def _pause(self, now: datetime | None) -> float:
        pause = min(self.options.polling_interval, max(0.0, self._clean_at - time.monotonic()) or 0.05)
        if self._next and now is not None:
            until_next = (min(known.at for known in self._next.values()) - now).total_seconds()
            pause = min(pause, max(0.0, until_next))
        return pause
