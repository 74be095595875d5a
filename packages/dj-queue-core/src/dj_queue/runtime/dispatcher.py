"""Scheduled jobs become ready when they are due."""

from typing import Any

from dj_queue.config import BackendConfig, DispatcherConfig
from dj_queue.models import Process
from dj_queue.operations import jobs
from dj_queue.runtime.process import Runner


class Dispatcher(Runner):
    kind = Process.Kind.DISPATCHER

    def __init__(
        self, config: BackendConfig, options: DispatcherConfig, name: str, supervisor_id: int | None = None
    ) -> None:
        super().__init__(config, name, supervisor_id)
        self.options = options

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "batch_size": self.options.batch_size,
            "polling_interval": self.options.polling_interval,
            "concurrency_maintenance": self.options.concurrency_maintenance,
            "concurrency_maintenance_interval": self.options.concurrency_maintenance_interval,
        }

    def step(self) -> float:
        promoted = jobs.promote(self.config, limit=self.options.batch_size)
        # A full batch means that more may be due.
        return 0.0 if promoted == self.options.batch_size else self.options.polling_interval
