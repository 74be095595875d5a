"""What every queue looks like now, as gauges. Each scrape reads the database, within a bounded cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:  # Models: not to be imported before the apps are ready.
    from dj_queue.operations.observation import Observation, ObservedQueue, Unavailable

STATES = ("ready", "scheduled", "claimed", "blocked", "failed", "finished")

# The most queues of a backend that have series of their own. Of the rest, jobs are summed up as OTHER.
MOST_QUEUES = 1000
OTHER = "other"

_FAMILIES = {
    "dj_queue_backend_up": ("Whether the backend's database could be read.", ["backend"]),
    "dj_queue_queue_jobs": ("Jobs of the queue in each state.", ["backend", "queue", "state"]),
    "dj_queue_queue_jobs_capped": (
        "1 where dj_queue_queue_jobs is a lower bound, because counting has stopped there.",
        ["backend", "queue", "state"],
    ),
    "dj_queue_queue_paused": ("Whether claims from the queue are paused.", ["backend", "queue"]),
    "dj_queue_queue_latency_seconds": (
        "How long the longest waiting ready job has been ready. Absent if there is none, or while paused.",
        ["backend", "queue"],
    ),
    "dj_queue_queue_live_workers": ("Workers with a fresh heartbeat that select the queue.", ["backend", "queue"]),
    "dj_queue_runner_processes": (
        "Supervisors, workers, dispatchers and schedulers by the freshness of their heartbeat.",
        ["backend", "status"],
    ),
    "dj_queue_runner_processes_by_kind": (
        "Processes of each kind by the freshness of their heartbeat.",
        ["backend", "kind", "status"],
    ),
    "dj_queue_recurring_tasks": ("Recurring tasks, configured and dynamic.", ["backend"]),
    "dj_queue_semaphores": ("Semaphores of concurrency limits in the database.", ["queue_database"]),
    "dj_queue_process_rows": ("Rows in the table of processes, fresh or not.", ["backend"]),
}


class DjQueueCollector(Collector):
    """Collects all of dj-queue's backends. A database that is down is told by dj_queue_backend_up, not raised."""

    def describe(self) -> Iterable[Metric]:
        """Without samples: registering a collector must not ask a database."""
        return _empty().values()

    def collect(self) -> Iterable[Metric]:
        return families(observations())


def observations() -> list[Observation | Unavailable]:
    from dj_queue.config import backend_config, managed_aliases
    from dj_queue.operations.observation import observe_all

    return observe_all([backend_config(alias) for alias in managed_aliases()])


def families(found: Sequence[Observation | Unavailable]) -> Iterable[Metric]:
    """Every promised family, with the samples of these observations."""
    from dj_queue.operations.observation import Observation

    metrics = _empty()
    databases: dict[str, int] = {}
    for seen in found:
        up = isinstance(seen, Observation)
        metrics["dj_queue_backend_up"].add_metric([seen.backend_alias], up)
        if isinstance(seen, Observation):
            _add_queues(metrics, seen)
            _add_processes(metrics, seen)
            metrics["dj_queue_recurring_tasks"].add_metric([seen.backend_alias], len(seen.recurring))
            databases[seen.database_alias] = seen.semaphore_count
    for database, count in databases.items():  # once, however many backends share it
        metrics["dj_queue_semaphores"].add_metric([database], count)
    return metrics.values()


def _empty() -> dict[str, GaugeMetricFamily]:
    return {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in _FAMILIES.items()}


def _add_queues(metrics: dict[str, GaugeMetricFamily], seen: Observation) -> None:
    backend = seen.backend_alias
    for name, queues in _by_label(seen.queues):
        for state in STATES:
            jobs = sum(getattr(queue, state) for queue in queues)
            metrics["dj_queue_queue_jobs"].add_metric([backend, name, state], jobs)
            if any(state in queue.capped for queue in queues):
                metrics["dj_queue_queue_jobs_capped"].add_metric([backend, name, state], 1)
        waits = [queue.latency_seconds for queue in queues if queue.latency_seconds is not None]
        if waits:
            metrics["dj_queue_queue_latency_seconds"].add_metric([backend, name], max(waits))
        if len(queues) == 1:
            metrics["dj_queue_queue_paused"].add_metric([backend, name], queues[0].paused)
            metrics["dj_queue_queue_live_workers"].add_metric([backend, name], queues[0].live_worker_count)


def _by_label(queues: Sequence[ObservedQueue]) -> Iterator[tuple[str, Sequence[ObservedQueue]]]:
    if len(queues) <= MOST_QUEUES:
        yield from ((queue.name, [queue]) for queue in queues)
        return
    # In the order of their names: which have series of their own does not change from scrape to scrape.
    own = [queue for queue in queues if queue.name != OTHER][: MOST_QUEUES - 1]
    yield from ((queue.name, [queue]) for queue in own)
    names = {queue.name for queue in own}
    yield OTHER, [queue for queue in queues if queue.name not in names]


def _add_processes(metrics: dict[str, GaugeMetricFamily], seen: Observation) -> None:
    backend = seen.backend_alias
    for live, status in ((True, "live"), (False, "stale")):
        there = [process for process in seen.processes if process.live is live]
        metrics["dj_queue_runner_processes"].add_metric([backend, status], len(there))
        for kind in ("Supervisor", "Worker", "Dispatcher", "Scheduler"):
            count = sum(process.kind == kind for process in there)
            metrics["dj_queue_runner_processes_by_kind"].add_metric([backend, kind, status], count)
    metrics["dj_queue_process_rows"].add_metric([backend], len(seen.processes))


registry = CollectorRegistry()
registry.register(DjQueueCollector())
