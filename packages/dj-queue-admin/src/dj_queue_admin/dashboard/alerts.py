"""What an operator should look at first, the worst on top."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dj_queue.config import BackendConfig
from dj_queue.models import FailedExecution, Process, RecurringTask
from dj_queue.operations.observation import Observation, ObservedRecurringTask
from dj_queue_admin import liveness, tasks
from dj_queue_admin.dashboard.figures import counted, total
from dj_queue_admin.links import Links
from dj_queue_admin.templatetags.dj_queue_admin import duration

_NAMED: Final = 3
# Tasks that one look at the page imports, beside those that are known.
_IMPORTED: Final = 100


@dataclass(frozen=True)
class Alert:
    tone: str
    text: str  # announced to who does not see the page whenever it changes: so without what changes all the time
    detail: str = ""
    link: str | None = None
    link_text: str = ""
    command: str = ""  # that mends it

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.detail, self.command)))


def alerts(seen: Observation, listed: Observation, config: BackendConfig, links: Links) -> list[Alert]:
    """`listed` is the same without the rows that the visitor may not see: no alert names them."""
    found = [
        *_runtime(seen, listed),
        *_queues(seen),
        *_processes(listed, config),
        *_recurring(listed, links),
        *_failures(seen, links),
    ]
    return sorted(found, key=lambda alert: alert.tone != "bad")


def promised(seen: Observation, tasks: Iterable[ObservedRecurringTask]) -> set[str]:
    """The keys of those tasks whose next run a live scheduler is there to enqueue."""
    schedulers = [each.metadata for each in seen.processes if each.live and each.kind == Process.Kind.SCHEDULER]
    return {task.key for task in tasks if any(liveness.fires(scheduler, task) for scheduler in schedulers)}


# ---- who works --------------------------------------------------------------------------------------


def _runtime(seen: Observation, listed: Observation) -> Iterator[Alert]:
    command = liveness.command(seen.backend_alias)
    kinds = _live_kinds(seen)
    if Process.Kind.WORKER not in kinds:
        if seen.queues or seen.processes or seen.recurring:
            yield Alert("bad", "Nothing works this backend.", f"{_why_nothing_works(seen)} Start it:", command=command)
        return
    waiting = total(seen.queues, "scheduled", "blocked")
    if Process.Kind.DISPATCHER not in kinds and waiting.count:
        text = f"No dispatcher is alive: {waiting} scheduled and blocked jobs stay where they are."
        yield Alert("bad", text, "Start one:", command=f"{command} --only-dispatch")
    kept = promised(seen, listed.recurring)
    idle = [task for task in listed.recurring if task.key not in kept]
    if idle:
        which = "that has" if Process.Kind.SCHEDULER in kinds else "to run"
        yield Alert("bad", f"No scheduler is alive {which} {_keys(idle)}.", "Start one:", command=command)


def _live_kinds(seen: Observation) -> set[str]:
    return {process.kind for process in seen.processes if process.live}


def _why_nothing_works(seen: Observation) -> str:
    ages = [process.age for process in seen.processes if process.kind == Process.Kind.WORKER]
    if ages:
        return f"No worker has had a heartbeat for {duration(min(ages))}."
    return "None of its processes is a worker." if seen.processes else "No process runs."


def _processes(seen: Observation, config: BackendConfig) -> Iterator[Alert]:
    late = [process for process in seen.processes if not process.live]
    if late:
        subject = f"{late[0].name} is" if len(late) == 1 else f"{len(late):,} processes are"
        due, since = duration(config.process_heartbeat_interval), duration(min(process.age for process in late))
        detail = f"Heartbeats are due every {due}, the last one came {since} ago."
        yield Alert("warn", f"{subject} late.", detail, "#djq-processes", "Processes")


# ---- what waits -------------------------------------------------------------------------------------


def _queues(seen: Observation) -> Iterator[Alert]:
    ready = [queue for queue in seen.queues if queue.ready and not queue.paused]
    alone = [queue for queue in ready if not queue.live_worker_count]
    # Where nothing works at all, that is what is said.
    if alone and Process.Kind.WORKER in _live_kinds(seen):
        names = ", ".join(queue.name for queue in alone[:_NAMED]) + _others(len(alone))
        yield Alert(
            "bad", f"No live worker takes jobs from {names}: {counted(total(alone, 'ready'), 'ready job')} wait."
        )
    held = [queue for queue in seen.queues if queue.paused and queue.ready]
    if held:
        yield Alert("warn", f"{counted(total(held, 'ready'), 'ready job')} wait in paused queues.")


def _failures(seen: Observation, links: Links) -> Iterator[Alert]:
    failed = total(seen.queues, "failed")
    if failed.count:
        text = "1 job has failed." if str(failed) == "1" else f"{failed} jobs have failed."
        yield Alert("bad", text, "", links.rows(FailedExecution), "Look at them")


# ---- recurring tasks --------------------------------------------------------------------------------


def _recurring(seen: Observation, links: Links) -> Iterator[Alert]:
    groups: list[tuple[str, str, Callable[[ObservedRecurringTask], object]]] = [
        ("bad", "Cannot run, as its schedule or time zone cannot be read", lambda task: not task.valid),
        ("bad", "Cannot run, as the task cannot be imported", _Lost()),
        ("bad", "Overdue", lambda task: task.missed_at),
        ("bad", "Failed last time", lambda task: task.last_run_failed),
    ]
    for tone, what, holds in groups:
        if found := [task for task in seen.recurring if holds(task)]:
            address = links.rows(RecurringTask, **({"q": found[0].key} if len(found) == 1 else {}))
            yield Alert(tone, f"{what}: {_keys(found)}.", "", address, "Recurring tasks")


class _Lost:
    """Whether a task cannot be imported; what has not been tried is, for as many as one look may try."""

    def __init__(self) -> None:
        self._left = _IMPORTED

    def __call__(self, task: ObservedRecurringTask) -> bool:
        if not tasks.is_known(task.task_path):
            if self._left <= 0:
                return False
            self._left -= 1
        return bool(tasks.look(task.task_path).obstacle)


def _keys(found: Sequence[ObservedRecurringTask]) -> str:
    one = "the recurring task" if len(found) == 1 else "the recurring tasks"
    return f"{one} {', '.join(task.key for task in found[:_NAMED])}{_others(len(found))}"


def _others(count: int) -> str:
    return f" and {count - _NAMED:,} others" if count > _NAMED else ""
