"""Which schedulers of an alias live, and whose settings hold where they differ.

During a deploy, and wherever hosts are configured apart, schedulers of one alias have other recurring tasks.
Each tells in its process row which ones it has. A row of the table is removed once no living scheduler has its
task, and changed only by the one among those that have it whose node was started last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from dj_queue.config import BackendConfig, RecurringConfig
from dj_queue.dialects import dialect_for
from dj_queue.models import Process
from dj_queue.operations import readable

# Of a scheduler's metadata: a mapping from the keys of its static tasks to a digest of each definition.
STATIC_TASKS = "static_tasks"

# What makes a task another task: a change of these is written to its row.
FIELDS = ("task_path", "payload", "schedule", "timezone", "queue_name", "priority", "description")


class Living(NamedTuple):
    """A scheduler whose heartbeat is fresh by the database's clock."""

    process_id: int
    label: str
    # When its node was started: a scheduler that its supervisor replaces has the settings that it had.
    rank: tuple[datetime, int]
    # None for one that does not tell which tasks it has, and may have any.
    tasks: Mapping[str, str] | None

    def has(self, key: str) -> bool:
        return self.tasks is None or key in self.tasks


def living(config: BackendConfig) -> list[Living]:
    """The alias's living schedulers, the one that was started last at the end."""
    fresh = dialect_for(config.database_alias).clock(ago=config.process_alive_threshold)
    rows = Process.objects.using(config.database_alias).filter(
        backend_alias=config.alias, kind=Process.Kind.SCHEDULER, last_heartbeat_at__gte=fresh
    )
    found = []
    readable_ones, lost = readable.read(rows.select_related("supervisor"))
    for row in readable_ones:
        first = row.supervisor if row.supervisor and row.supervisor.created_at else row
        label = f"{row.name} on {row.hostname or 'an unnamed host'} (pid {row.pid})"
        found.append(Living(row.pk, label, (first.created_at, row.pk), _tasks(row.metadata)))
    first_of_all = min((each.rank[0] for each in found), default=None)
    if first_of_all is not None:
        # They live, and may have any task; of those that can be read, each was started later.
        found += [Living(pk, f"the process of row {pk}", (first_of_all, -1), None) for pk in lost]
    return sorted(found, key=lambda each: each.rank)


def metadata(config: BackendConfig) -> dict[str, str]:
    """What a scheduler tells of its static tasks."""
    return {task.key: digest(task) for task in config.recurring}


def digest(task: RecurringConfig) -> str:
    """A short text that differs where definitions do."""
    values = json.dumps(definition(task), sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2s(values.encode(), digest_size=6).hexdigest()


def definition(task: RecurringConfig) -> dict[str, Any]:
    """The values of a task's row."""
    return {
        "task_path": task.task_path,
        "payload": {"args": list(task.args), "kwargs": dict(task.kwargs)},
        "schedule": task.schedule,
        "timezone": task.timezone,
        "queue_name": task.queue_name,
        "priority": task.priority,
        "description": task.description,
    }


def _tasks(told: Any) -> Mapping[str, str] | None:
    tasks = told.get(STATIC_TASKS) if isinstance(told, Mapping) else None
    if isinstance(tasks, Mapping):
        return tasks
    # A version that does not tell them tells their number.
    count = told.get("static_task_count") if isinstance(told, Mapping) else None
    return {} if count == 0 else None
