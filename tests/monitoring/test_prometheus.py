"""What Prometheus scrapes: every promised family, in the format, by the rules of `promtool check metrics`."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dj_queue.api import QueueInfo
from dj_queue.contrib import prometheus as door
from dj_queue.models import Process
from dj_queue.operations import observation
from dj_queue_prometheus import DjQueueCollector, collector, recorder, registry
from tests.project.tasks import add, one_per_key
from tests.working import work

pytestmark = pytest.mark.django_db(transaction=True)

PROMISED = {
    "dj_queue_queue_jobs": {"backend", "queue", "state"},
    "dj_queue_queue_paused": {"backend", "queue"},
    "dj_queue_queue_latency_seconds": {"backend", "queue"},
    "dj_queue_queue_live_workers": {"backend", "queue"},
    "dj_queue_runner_processes": {"backend", "status"},
    "dj_queue_runner_processes_by_kind": {"backend", "kind", "status"},
    "dj_queue_recurring_tasks": {"backend"},
    "dj_queue_semaphores": {"queue_database"},
    "dj_queue_process_rows": {"backend"},
}
STATES = {"ready", "scheduled", "claimed", "blocked", "failed", "finished"}


def parsed(text: str) -> dict[str, Metric]:
    return {metric.name: metric for metric in text_string_to_metric_families(text)}


def scrape(web: Client) -> dict[str, Metric]:
    answer = web.get("/dj_queue/metrics")
    assert answer.status_code == 200
    assert answer["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.content.decode())


def values(metric: Metric, *labels: str) -> dict[Any, float]:
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in metric.samples}


def lint(metrics: dict[str, Metric]) -> list[str]:
    """The rules of promtool's linter, of those that apply to what we have."""
    problems = []
    for name, metric in metrics.items():
        if not metric.documentation:
            problems.append(f"{name}: no help text")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            problems.append(f"{name}: not in snake case")
        if metric.type == "counter" and not all(sample.name.endswith("_total") for sample in metric.samples):
            problems.append(f"{name}: a counter does not end in _total")
        if metric.type != "counter" and name.endswith(("_total", "_count", "_sum", "_bucket")):
            problems.append(f"{name}: a {metric.type} ends like a part of another type")
        if re.search(r"_(gauge|counter|histogram|summary)(_|$)", name):
            problems.append(f"{name}: names its type")
        if re.search(r"_(ms|milliseconds|minutes|hours|days|s|sec|secs|kb|mb|bytes_per_second)$", name):
            problems.append(f"{name}: no base unit")
        if "seconds" in name and not name.endswith("_seconds"):
            problems.append(f"{name}: its unit is not at the end")
        for sample in metric.samples:
            if metric.type != "histogram" and {"le", "quantile"} & sample.labels.keys():
                problems.append(f"{name}: a reserved label")
            if any(not re.fullmatch(r"[a-z][a-z_]*", label) for label in sample.labels):
                problems.append(f"{name}: a label is not in snake case")
    return problems


def stored() -> None:
    add.using(queue_name='we"ird\\\n').enqueue(1, 2)
    add.using(queue_name="done").enqueue(1, 2)
    work(queues=["done"])
    one_per_key.using(queue_name="limited").enqueue("k")
    one_per_key.using(queue_name="limited").enqueue("k")
    QueueInfo("paused").pause()
    Process.objects.create(kind="Worker", pid=1, name="worker-1", metadata={"queues": ["done"]})
    Process.objects.create(kind="Supervisor", pid=1, name="supervisor-1")
    stale = Process.objects.create(kind="Worker", pid=2, name="worker-2", metadata={"queues": ["*"]})
    Process.objects.filter(pk=stale.pk).update(last_heartbeat_at=timezone.now() - timezone.timedelta(hours=1))


# ---- the families -----------------------------------------------------------------------------------


def test_every_promised_family_with_its_labels(web: Client) -> None:
    stored()
    metrics = scrape(web)
    for name, labels in PROMISED.items():
        assert metrics[name].samples, name
        assert metrics[name].type == "gauge"
        assert {frozenset(sample.labels) for sample in metrics[name].samples} == {frozenset(labels)}, name


def test_their_values(web: Client) -> None:
    stored()
    metrics = scrape(web)
    jobs = values(metrics["dj_queue_queue_jobs"], "queue", "state")
    assert {key: count for key, count in jobs.items() if count} == {
        ('we"ird\\\n', "ready"): 1,
        ("done", "finished"): 1,
        ("limited", "ready"): 1,
        ("limited", "blocked"): 1,
    }
    assert {state for _, state in jobs} == STATES
    paused = values(metrics["dj_queue_queue_paused"], "queue")
    assert {queue for (queue,), value in paused.items() if value} == {"paused"}
    waits = values(metrics["dj_queue_queue_latency_seconds"], "queue")
    assert waits.keys() == {('we"ird\\\n',), ("limited",)}
    assert values(metrics["dj_queue_queue_live_workers"], "queue")["done",] == 1
    assert values(metrics["dj_queue_runner_processes"], "status") == {("live",): 2, ("stale",): 1}
    kinds = values(metrics["dj_queue_runner_processes_by_kind"], "kind", "status")
    assert {key for key, value in kinds.items() if value} == {
        ("Worker", "live"),
        ("Worker", "stale"),
        ("Supervisor", "live"),
    }
    assert values(metrics["dj_queue_semaphores"], "queue_database") == {("default",): 1}
    assert values(metrics["dj_queue_process_rows"], "backend") == {("default",): 3}
    assert values(metrics["dj_queue_backend_up"], "backend") == {("default",): 1}
    assert metrics["dj_queue_queue_jobs_capped"].samples == []


def test_semaphores_once_for_a_database_that_aliases_share(web: Client, aliases: Callable[..., None]) -> None:
    aliases(default={}, mail={})
    metrics = scrape(web)
    assert len(metrics["dj_queue_semaphores"].samples) == 1
    assert len(metrics["dj_queue_process_rows"].samples) == 2


def test_a_lower_bound_is_marked(web: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation.observe_all, "__kwdefaults__", {"cap": 2})
    for _ in range(3):
        add.using(queue_name="q").enqueue(1, 2)
    metrics = scrape(web)
    assert values(metrics["dj_queue_queue_jobs"], "state")["ready",] == 2
    assert values(metrics["dj_queue_queue_jobs_capped"], "queue", "state") == {("q", "ready"): 1, ("q", "finished"): 1}


def test_the_rules_of_promtool(web: Client) -> None:
    stored()
    assert lint(scrape(web)) == []


# ---- a bounded number of series ---------------------------------------------------------------------


def test_more_queues_than_series_are_summed_up(web: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "MOST_QUEUES", 3)
    for name in ("a", "b", "c", "other", "z"):
        add.using(queue_name=name).enqueue(1, 2)
    metrics = scrape(web)
    ready = {queue: n for (queue, state), n in values(metrics["dj_queue_queue_jobs"], "queue", "state").items()
             if state == "ready"}  # fmt: skip
    assert ready == {"a": 1, "b": 1, "other": 3}
    assert values(metrics["dj_queue_queue_latency_seconds"], "queue").keys() == {("a",), ("b",), ("other",)}
    assert values(metrics["dj_queue_queue_paused"], "queue").keys() == {("a",), ("b",)}


# ---- databases that are down ------------------------------------------------------------------------


def test_one_database_that_is_down_is_a_series(web: Client, aliases: Callable[..., None], down: str) -> None:
    aliases(default={}, lost={"database_alias": down})
    metrics = scrape(web)
    assert values(metrics["dj_queue_backend_up"], "backend") == {("default",): 1, ("lost",): 0}
    assert values(metrics["dj_queue_process_rows"], "backend") == {("default",): 0}


def test_the_collector_never_breaks_another_registry(aliases: Callable[..., None], down: str) -> None:
    aliases(lost={"database_alias": down})
    mine = CollectorRegistry(auto_describe=True)
    mine.register(DjQueueCollector())
    metrics = parsed(generate_latest(mine).decode())
    assert values(metrics["dj_queue_backend_up"], "backend") == {("lost",): 0}


# ---- doors ------------------------------------------------------------------------------------------


def test_the_promised_names(django_assert_num_queries: Any) -> None:
    assert door.DjQueueCollector is DjQueueCollector
    assert door.registry is registry
    with django_assert_num_queries(0):
        CollectorRegistry(auto_describe=True).register(DjQueueCollector())
    assert parsed(generate_latest(registry).decode()).keys() >= PROMISED.keys()


ABSENT = "import sys; sys.modules['dj_queue_prometheus'] = None; "
BROKEN = "import sys; sys.modules['prometheus_client'] = None; "


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_the_door_without_the_add_on() -> None:
    code = "from dj_queue.contrib.prometheus import DjQueueCollector, registry; print(DjQueueCollector, registry)"
    assert python(ABSENT + code) == "None None\n"


def test_a_broken_add_on_shows_its_own_error() -> None:
    assert "No module named 'prometheus_client'" in python(BROKEN + "import dj_queue.contrib.prometheus").replace(
        "import of prometheus_client halted; None in sys.modules", "No module named 'prometheus_client'"
    )


def test_the_route_without_the_add_on(web: Client, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    for name in [name for name in sys.modules if name.startswith("dj_queue_prometheus")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    answer = web.get("/dj_queue/metrics")
    assert answer.status_code == 503
    assert answer.content == b"dj-queue-prometheus is not installed. Run: pip install dj-queue-prometheus\n"
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = "t"
    assert web.get("/dj_queue/metrics").status_code == 401


class Absent:
    """Finds no dj_queue_prometheus, as where it is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.startswith("dj_queue_prometheus"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_the_recorders_states_are_the_models() -> None:
    from dj_queue.models import STATES as stored_states

    assert stored_states == collector.STATES
    assert collector.OTHER == recorder.OTHER
