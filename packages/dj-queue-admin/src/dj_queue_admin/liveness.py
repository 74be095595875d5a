"""Who is alive, by heartbeats: who misses two of them is late at once, long before others take over its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

from dj_queue.config import BackendConfig
from dj_queue.dialects import elapsed
from dj_queue.models import Process
from dj_queue.operations import processes, readable
from dj_queue.operations.schedulers import STATIC_TASKS

# How many heartbeats a process may miss before it is late.
MISSED: Final = 2

type Life = Literal["live", "late", "stale"]


class Recurring(Protocol):
    """A recurring task, as stored or as observed."""

    @property
    def key(self) -> str: ...
    @property
    def static(self) -> bool: ...


def late_after(config: BackendConfig) -> float:
    """Seconds since the last heartbeat after which a process is late."""
    return min(MISSED * config.process_heartbeat_interval, config.process_alive_threshold)


def life(config: BackendConfig, age: float) -> Life:
    """What the age in seconds of a last heartbeat says. Others take over the jobs of a stale process."""
    if age <= late_after(config):
        return "live"
    return "late" if age <= config.process_alive_threshold else "stale"


def command(alias: str) -> str:
    """What starts a runtime."""
    return "python manage.py dj_queue" + ("" if alias == "default" else f" --backend {alias}")


def live(config: BackendConfig, kind: Process.Kind) -> list[Mapping[str, Any]]:
    """What the live processes of a kind tell of themselves."""
    rows = processes.of_alias(config).filter(kind=kind).order_by("pk")
    found = readable.read(rows.values_list("last_heartbeat_at", "metadata", processes.clock(config))).rows
    fresh = late_after(config)
    return [told if isinstance(told, Mapping) else {} for at, told, now in found if at and elapsed(at, now) <= fresh]


def fires(scheduler: Mapping[str, Any], task: Recurring) -> bool:
    """Whether a scheduler enqueues a recurring task, by what it tells. One that tells nothing may have any."""
    if not task.static:
        return bool(scheduler.get("dynamic_tasks_enabled", True))
    tasks = scheduler.get(STATIC_TASKS)
    return task.key in tasks if isinstance(tasks, Mapping) else scheduler.get("static_task_count") != 0
