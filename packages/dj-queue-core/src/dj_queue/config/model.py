"""What a valid configuration is. The defaults live here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

type Mode = Literal["fork", "async"]
type CatchUp = Literal["latest", "none"]

_DAY = 86400

# A runner believes that it is alive for nine tenths of the threshold (see runtime/lease.py). Within them the
# next heartbeat has to arrive, and a second try where the first one fails.
LEAST_BEATS = 1.5


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    # Selectors in claiming order: "*" for every queue, "email*" for a prefix, or an exact name.
    queues: tuple[str, ...] = ("*",)
    threads: int = 3
    processes: int = 1
    polling_interval: float = 0.1
    # In fork mode: after this number of jobs, or above this much memory, the process is drained and replaced.
    recycle_after_jobs: int | None = None
    recycle_above_mib: int | None = None


@dataclass(frozen=True, slots=True)
class DispatcherConfig:
    batch_size: int = 500
    polling_interval: float = 1.0
    concurrency_maintenance: bool = True
    concurrency_maintenance_interval: float = 600.0


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    dynamic_tasks_enabled: bool = False
    polling_interval: float = 5.0
    # Of the ticks that were missed while no scheduler ran: the latest is made up for, or none.
    catch_up: CatchUp = "latest"


@dataclass(frozen=True, slots=True)
class RecurringConfig:
    key: str
    task_path: str
    schedule: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    queue_name: str = "default"
    priority: int = 0
    description: str = ""
    timezone: str | None = None
    catch_up: CatchUp | None = None  # as the scheduler's


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """One alias of `TASKS`, with everything that its processes need to know."""

    alias: str
    database_alias: str = "default"
    mode: Mode = "fork"
    workers: tuple[WorkerConfig, ...] = (WorkerConfig(),)
    dispatchers: tuple[DispatcherConfig, ...] = (DispatcherConfig(),)
    # None where `--only-work` or `--only-dispatch` leaves the scheduler out.
    scheduler: SchedulerConfig | None = SchedulerConfig()
    recurring: tuple[RecurringConfig, ...] = ()
    process_heartbeat_interval: float = 60
    process_alive_threshold: float = 300
    shutdown_timeout: float = 5
    supervisor_pidfile: str | None = None
    preserve_finished_jobs: bool = True
    clear_finished_jobs_after: float | None = _DAY
    clear_failed_jobs_after: float | None = None
    clear_recurring_executions_after: float | None = None
    default_concurrency_duration: float = 180
    use_skip_locked: bool = True
    listen_notify: bool = True
    # An alias that leads to the queue's database around a pooler. The queue's own: listen, whatever seems to pool.
    listen_database_alias: str | None = None
    silence_polling: bool = True
    on_thread_error: str | None = None
    skip_recurring: bool = False
    # The `--config` file, if it has `backends:` and so speaks for the process's other aliases too.
    config_file: str | None = None

    @property
    def finished_kept_for(self) -> float | None:
        """Seconds after which finished jobs are deleted, or None.

        Without `preserve_finished_jobs` there are some too: from before it was turned off, discarded at enqueue, and
        those that other rows refer to. No option keeps them.
        """
        if self.preserve_finished_jobs or self.clear_finished_jobs_after is not None:
            return self.clear_finished_jobs_after
        return _DAY

    @property
    def cleanup_enabled(self) -> bool:
        """Whether a scheduler has anything to delete."""
        ages = (self.finished_kept_for, self.clear_failed_jobs_after, self.clear_recurring_executions_after)
        return any(age is not None for age in ages)

    @property
    def scheduler_needed(self) -> bool:
        """Whether a supervisor starts a scheduler."""
        if self.scheduler is None or self.skip_recurring:
            return False
        return bool(self.scheduler.dynamic_tasks_enabled or self.recurring or self.cleanup_enabled)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says, or code in its place. It beats every other source."""

    mode: str | None = None
    config_file: str | None = None
    only_work: bool = False
    only_dispatch: bool = False
    skip_recurring: bool | None = None
    # Values of options by their names, which only code can give.
    options: Mapping[str, Any] = field(default_factory=dict)
