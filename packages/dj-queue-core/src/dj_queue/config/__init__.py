"""Configuration: read once, refused with every mistake named, then frozen.

    model      what a valid configuration is: frozen dataclasses, with all defaults
    mistakes   collects what is wrong and where, and says it in one exception
    readers    one small reader for each kind of value
    recurring  the readers that only recurring tasks need
    options    the table of options: which reader reads which key
    overrides  the readers of what code gives in place of a command line
    files      a YAML file, read within bounds
    sources    where values come from: settings, YAML, environment, command line
    monitoring the token of `dj_queue.urls`
    current    the configuration this process uses

Modules import downwards only, from `current` to `model`. Nothing here touches models or a
database, so a task module may be imported before the apps are ready.
"""

from dj_queue.config.current import (
    activate,
    backend_config,
    database_aliases,
    flat_file,
    load_config,
    migrated_aliases,
    process_config,
    reset,
    usual_database,
)
from dj_queue.config.model import (
    BackendConfig,
    DispatcherConfig,
    Overrides,
    RecurringConfig,
    SchedulerConfig,
    WorkerConfig,
)
from dj_queue.config.monitoring import TOKEN_SETTING, observability_token
from dj_queue.config.recurring import read_recurring_task, schedule_mistake
from dj_queue.config.sources import BACKEND_PATH, managed_aliases, usual_alias

__all__ = [
    "BACKEND_PATH",
    "TOKEN_SETTING",
    "BackendConfig",
    "DispatcherConfig",
    "Overrides",
    "RecurringConfig",
    "SchedulerConfig",
    "WorkerConfig",
    "activate",
    "backend_config",
    "database_aliases",
    "flat_file",
    "load_config",
    "managed_aliases",
    "migrated_aliases",
    "observability_token",
    "process_config",
    "read_recurring_task",
    "reset",
    "schedule_mistake",
    "usual_alias",
    "usual_database",
]
