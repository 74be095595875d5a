"""The table of options: which reader reads which key. Defaults are the model's."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dj_queue.config import readers as read
from dj_queue.config.model import DispatcherConfig, SchedulerConfig, WorkerConfig
from dj_queue.config.problems import Mistakes, Place
from dj_queue.config.recurring import recurring

WORKER: dict[str, read.Reader] = {
    "queues": read.selectors,
    "threads": read.whole(1),
    "processes": read.whole(1),
    "polling_interval": read.interval,
    "recycle_after_jobs": read.optional(read.whole(1)),
    "recycle_above_mib": read.optional(read.whole(1)),
}
DISPATCHER: dict[str, read.Reader] = {
    "batch_size": read.whole(1),
    "polling_interval": read.interval,
    "concurrency_maintenance": read.boolean,
    "concurrency_maintenance_interval": read.interval,
}
SCHEDULER: dict[str, read.Reader] = {
    "dynamic_tasks_enabled": read.boolean,
    "polling_interval": read.interval,
    "catch_up": read.one_of("latest", "none"),
}
OPTIONS: dict[str, read.Reader] = {
    "mode": read.one_of("fork", "async"),
    "workers": read.one_or_many(read.section(WorkerConfig, WORKER)),
    "dispatchers": read.one_or_many(read.section(DispatcherConfig, DISPATCHER)),
    "scheduler": read.section(SchedulerConfig, SCHEDULER),
    "recurring": recurring,
    "process_heartbeat_interval": read.interval,
    "process_alive_threshold": read.interval,
    "shutdown_timeout": read.duration,
    "supervisor_pidfile": read.optional(read.file_path),
    "preserve_finished_jobs": read.boolean,
    "clear_finished_jobs_after": read.optional(read.duration),
    "clear_failed_jobs_after": read.optional(read.duration),
    "clear_recurring_executions_after": read.optional(read.duration),
    "default_concurrency_duration": read.interval,
    "database_alias": read.database,
    "use_skip_locked": read.boolean,
    "listen_notify": read.boolean,
    "listen_database_alias": read.other_database,
    "silence_polling": read.boolean,
    "on_thread_error": read.callback,
}


class Given(NamedTuple):
    """A value as somebody wrote it, and where."""

    value: Any
    place: Place


type Layer = Mapping[Any, Given]


def merge(layers: Iterable[Layer], mistakes: Mistakes) -> dict[str, Given]:
    """The known options of all layers, the later ones replacing the earlier ones whole."""
    given: dict[str, Given] = {}
    for layer in layers:
        for key, item in layer.items():
            if key in OPTIONS:
                given[key] = item
            else:
                mistakes.unknown(item.place, item.value, OPTIONS)
    return given


def read_values(given: Mapping[str, Given], mistakes: Mistakes) -> dict[str, Any]:
    """The values that are right. What is wrong is left out, and told to `mistakes`."""
    values = {}
    for key, item in given.items():
        before = len(mistakes)
        value = OPTIONS[key](item.value, item.place, mistakes)
        if len(mistakes) == before:
            values[key] = value
    return values
