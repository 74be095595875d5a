"""Which runners a configuration asks for, and what becomes of each over time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dj_queue.config import BackendConfig
from dj_queue.runtime import lease as leases
from dj_queue.runtime.dispatcher import Dispatcher
from dj_queue.runtime.part import backoff
from dj_queue.runtime.runner import End, Runner
from dj_queue.runtime.scheduler import Scheduler
from dj_queue.runtime.shared_state import SharedState
from dj_queue.runtime.worker import Worker

# A runner that lived this number of seconds did not die at once.
_PROVEN = 30.0


@dataclass(slots=True, eq=False)
class Slot:
    """One place among the runners: who fills it changes, its name does not."""

    kind: str
    name: str
    make: Callable[[int | None, SharedState], Runner]
    shared: SharedState  # of who fills it now
    started_at: float = 0.0
    due_at: float = 0.0  # when to fill the place again
    failures: int = field(default=0)

    @property
    def end(self) -> End:
        """How the runner ended, as it says itself; who says nothing was ended by something else."""
        return End.CRASHED if self.shared.end is None else End(self.shared.end)

    def begin(self, *, patience: float = math.inf) -> None:
        """Make room for the next, which is to be heard of within `patience` seconds.

        Nothing that the last one said counts for it.
        """
        self.shared = SharedState()
        self.shared.until = leases.now() + patience

    def started(self) -> None:
        self.started_at = time.monotonic()

    def ended(self, *, failed: bool) -> None:
        """Note the end, and when to start again: at once, or later and later if it dies again and again."""
        if not failed or time.monotonic() - self.started_at > _PROVEN:
            self.failures = 0
        if failed:
            self.failures += 1
        # The first time costs nothing but the restart.
        wait = backoff(self.failures - 1) if self.failures > 1 else 0.0
        self.due_at = time.monotonic() + wait


def slots(config: BackendConfig) -> list[Slot]:
    """The runners of one supervisor, in the order of their start."""
    planned = []
    for n, options in enumerate(config.workers, 1):
        for m in range(1, options.processes + 1):
            name = f"worker-{n}-{m}" if options.processes > 1 else f"worker-{n}"
            planned.append(Slot("worker", name, partial(Worker, config, options, name), SharedState()))
    for n, dispatching in enumerate(config.dispatchers, 1):
        name = f"dispatcher-{n}"
        planned.append(Slot("dispatcher", name, partial(Dispatcher, config, dispatching, name), SharedState()))
    if config.scheduler is not None and config.scheduler_needed:
        planned.append(
            Slot("scheduler", "scheduler-1", partial(Scheduler, config, config.scheduler, "scheduler-1"), SharedState())
        )
    return planned
