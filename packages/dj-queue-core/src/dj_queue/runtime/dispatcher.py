"""Scheduled jobs become ready when they are due, and concurrency limits are kept in order."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from dj_queue.config import BackendConfig, DispatcherConfig
from dj_queue.models import Process
from dj_queue.operations import concurrency, jobs, maintenance
from dj_queue.runtime.part import Part
from dj_queue.runtime.runner import Runner
from dj_queue.runtime.shared_state import SharedState


class Dispatcher(Runner):
    kind = Process.Kind.DISPATCHER

    def __init__(
        self,
        config: BackendConfig,
        options: DispatcherConfig,
        name: str,
        supervisor_id: int | None = None,
        shared: SharedState | None = None,
    ) -> None:
        super().__init__(config, name, supervisor_id, shared)
        self.options = options
        self._maintain_at = 0.0  # at start, and then at every interval
        self._upkeep: Iterator[int] | None = None
        self._held = concurrency.HeldKeys(config)
        self._upkeeps = Part(config, "dispatcher.upkeep")
        self._promotes = Part(config, "dispatcher.promote")

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "batch_size": self.options.batch_size,
            "polling_interval": self.options.polling_interval,
            "concurrency_maintenance": self.options.concurrency_maintenance,
            "concurrency_maintenance_interval": self.options.concurrency_maintenance_interval,
        }

    def step(self) -> float:
        maintaining = self._upkeeps(self._maintain, False)
        promote = partial(jobs.promote, self.config, limit=self.options.batch_size, held=self._held)
        promoted = self._promotes(promote, 0)
        # A full batch means that more may be due.
        return 0.0 if maintaining or promoted == self.options.batch_size else self.options.polling_interval

    def _maintain(self) -> bool:
        """Do a step of upkeep if it is time; return whether there are more. Due jobs do not wait for all of it."""
        if self._upkeep is None:
            if not self.options.concurrency_maintenance or time.monotonic() < self._maintain_at:
                return False
            self._upkeep = maintenance.maintain(self.config)
        upkeep, self._upkeep = self._upkeep, None  # one that fails begins anew
        if next(upkeep, None) is None:
            self._maintain_at = time.monotonic() + self.options.concurrency_maintenance_interval
        else:
            self._upkeep = upkeep
        return self._upkeep is not None
