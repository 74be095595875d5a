"""What workers count, served beside a real runtime, in both modes and through every kind of end."""

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from dj_queue import events
from dj_queue.models import Job
from dj_queue_prometheus import listener, recorder
from dj_queue_prometheus.apps import check_open_address, check_setting
from dj_queue_prometheus.conf import RuntimeMetrics, runtime_metrics
from dj_queue_prometheus.recorder import Recorder
from tests.conftest import Runtime, alive, pid_of, wait_settled, wait_until
from tests.monitoring.test_prometheus import lint, parsed
from tests.project.tasks import add, fail, wait_for_file

WORKERS = {"workers": {"processes": 2, "threads": 2}, "shutdown_timeout": 10}
SETTINGS = "\nINSTALLED_APPS = [*INSTALLED_APPS, 'dj_queue_prometheus']\nDJ_QUEUE_PROMETHEUS = {{'port': {port}}}\n"


@pytest.fixture
def listening(runtime: Any, project: Any, tmp_path: Path) -> Callable[..., Runtime]:
    """Start a runtime whose metrics are on a free port."""

    def start(*arguments: str, port: int = 0, settings: str = "", **options: Any) -> Runtime:
        (tmp_path / "tmp").mkdir()
        environment = project(settings=SETTINGS.format(port=port) + settings)
        environment["TMPDIR"] = str(tmp_path / "tmp")
        running: Runtime = runtime(*arguments, options={**WORKERS, **options}, environment=environment, rows=2)
        return running

    return start


def port_of(running: Runtime) -> int:
    return int(
        wait_until(lambda: re.search(r"dj_queue metrics on http://127\.0\.0\.1:(\d+)/metrics", running.output))[1]
    )


def ask(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


def scrape(running: Runtime) -> dict[str, Metric]:
    status, headers, text = ask(port_of(running))
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parsed(text)


def total(metrics: dict[str, Metric], family: str, sample: str, **labels: str) -> float:
    return sum(
        each.value
        for each in (metrics[family].samples if family in metrics else [])
        if each.name == sample and labels.items() <= each.labels.items()
    )


def finished(running: Runtime) -> float:
    return total(scrape(running), "dj_queue_jobs_finished", "dj_queue_jobs_finished_total")


def folders(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "tmp").glob("dj-queue-prometheus-*"))


def enqueue(count: int) -> None:
    add.get_backend().enqueue_all((add.using(queue_name="q"), (1, 2), {}) for _ in range(count))


# ---- what is counted --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fork", "async"])
def test_jobs_of_every_worker_are_counted(listening: Callable[..., Runtime], mode: str, tmp_path: Path) -> None:
    workers = [{"queues": "q"}, {"queues": "*"}] if mode == "async" else {"processes": 2, "threads": 2}
    running = listening("--mode", mode, workers=workers)
    enqueue(30)
    for _ in range(3):
        fail.enqueue()
    wait_settled()
    wait_until(lambda: finished(running) == 30, what="every finished job counted")
    metrics = scrape(running)
    ours = {"backend": "default", "queue": "q", "task": "tests.project.tasks.add"}
    assert total(metrics, "dj_queue_jobs_finished", "dj_queue_jobs_finished_total", **ours) == 30
    failed = {"queue": "default", "task": "tests.project.tasks.fail"}
    assert total(metrics, "dj_queue_jobs_failed", "dj_queue_jobs_failed_total", **failed) == 3
    for family in ("dj_queue_job_duration_seconds", "dj_queue_job_wait_seconds"):
        assert metrics[family].type == "histogram"
        assert total(metrics, family, f"{family}_count", **ours) == 30
        assert total(metrics, family, f"{family}_bucket", le="+Inf", **ours) == 30
        assert total(metrics, family, f"{family}_sum", **ours) > 0
    assert lint(metrics) == []
    assert running.stop() == 0
    assert folders(tmp_path) == []
    with pytest.raises(ConnectionRefusedError):
        ask(port_of(running))


def test_a_worker_that_is_killed_takes_no_count_with_it(listening: Callable[..., Runtime], tmp_path: Path) -> None:
    running = listening(workers={"processes": 1, "threads": 1})
    enqueue(5)
    wait_settled()
    wait_until(lambda: finished(running) == 5)
    worker = pid_of("worker-1")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: pid_of("worker-1") not in (0, worker), what="another worker")
    assert finished(running) == 5
    enqueue(5)
    wait_settled()
    wait_until(lambda: finished(running) == 10, what="its successor counts on")
    assert len(list(folders(tmp_path)[0].glob("*.db"))) == 2


def test_recycled_workers_leave_no_more_files(listening: Callable[..., Runtime], tmp_path: Path) -> None:
    running = listening(workers={"processes": 1, "threads": 1, "recycle_after_jobs": 5})
    first = pid_of("worker-1")
    enqueue(20)
    wait_settled()
    wait_until(lambda: finished(running) == 20)
    assert pid_of("worker-1") != first
    assert len(list(folders(tmp_path)[0].glob("*.db"))) == 2


# ---- every kind of end ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fork", "async"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGQUIT, signal.SIGTERM])
def test_the_listener_ends_with_its_supervisor(
    listening: Callable[..., Runtime], tmp_path: Path, end: signal.Signals, mode: str
) -> None:
    running = listening("--mode", mode)
    port = port_of(running)
    assert ask(port)[0] == 200
    (folder,) = folders(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0
    running.signal(end)
    running.wait()
    wait_until(lambda: not folder.exists(), what="its folder removed")
    wait_until(lambda: _is_free(port), what="its port free again")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_the_last_jobs_are_seen_while_the_runtime_drains(listening: Callable[..., Runtime], tmp_path: Path) -> None:
    running = listening()
    port = port_of(running)
    release = tmp_path / "release"
    wait_for_file.enqueue(str(release))
    wait_until(lambda: Path(f"{release}.started").exists())
    # A service manager tells the whole group.
    os.killpg(running.pid, signal.SIGTERM)
    assert ask(port)[0] == 200
    release.touch()
    assert running.wait() == 0
    assert Job.objects.finished().count() == 1


def test_a_port_that_is_taken_does_not_keep_the_queue_from_running(listening: Callable[..., Runtime]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = listening(port=port)
        enqueue(3)
        wait_settled()
        assert running.stop() == 0
    assert f"serves no metrics on 127.0.0.1, port {port}: Address already in use. The queue runs on" in running.output
    assert "DJ_QUEUE_PROMETHEUS" in running.output


def test_a_listener_that_is_gone_does_not_keep_the_queue_from_running(listening: Callable[..., Runtime]) -> None:
    running = listening()
    port_of(running)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    (listener,) = [
        pid for pid in map(int, children) if b"dj_queue_prometheus" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(listener, signal.SIGKILL)
    wait_until(lambda: not alive(listener))
    enqueue(3)
    wait_settled()
    assert running.stop() == 0


# ---- the listener's answers -------------------------------------------------------------------------


def test_the_listener_asks_for_the_token(listening: Callable[..., Runtime]) -> None:
    port = port_of(listening(settings="DJ_QUEUE_OBSERVABILITY_TOKEN = 'gehéim'\n"))
    status, headers, _ = ask(port)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert ask(port, Authorization="Bearer wrong")[0] == 401
    assert ask(port, Authorization="Bearer gehéim".encode().decode("latin-1"))[0] == 200


def test_the_listener_serves_metrics_alone(listening: Callable[..., Runtime]) -> None:
    port = port_of(listening())
    assert ask(port, "/")[0] == 404
    assert ask(port, method="POST")[0] == 501
    status, headers, text = ask(port, method="HEAD")
    assert (status, text, headers["cache-control"]) == (200, "", "no-store")


def test_slow_clients_neither_pile_up_nor_keep_a_scrape_out(listening: Callable[..., Runtime]) -> None:
    running = listening()
    port = port_of(running)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        pytest.skip("the system does not tell a process's children")
    (pid,) = [pid for pid in children.read_text().split() if "listener" in Path(f"/proc/{pid}/cmdline").read_text()]
    slow = []
    for _ in range(100):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        slow.append(client)
    wait_until(lambda: _threads(pid) <= 20, what="no more threads than clients at a time")
    assert ask(port)[0] == 200
    closed = [client for client in slow if _is_closed(client)]
    assert len(closed) >= 80
    for client in slow:
        client.close()
    wait_until(lambda: _threads(pid) <= 3, what="its threads ended")


def test_a_client_that_never_ends_its_request_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "TO_ASK", 0.2)
    server = listener.Server(("127.0.0.1", 0), listener.Handler)
    serving = threading.Thread(target=server.serve_forever, args=(0.02,))
    serving.start()
    try:
        client = socket.create_connection(server.server_address[:2])
        client.sendall(b"GET /metrics HTTP/1.1\r\n")

        def drips() -> bool:
            """One header after the other, each in time."""
            try:
                client.sendall(b"X: y\r\n")
            except OSError:
                return False
            return not _is_closed(client)

        wait_until(lambda: not drips(), seconds=5, what="hung up on")
        client.close()
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def _threads(pid: str) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _is_closed(client: socket.socket) -> bool:
    client.settimeout(0.001)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_nothing_listens_unasked(runtime: Any, project: Any) -> None:
    running = runtime(environment=project(settings="\nINSTALLED_APPS = [*INSTALLED_APPS, 'dj_queue_prometheus']\n"))
    enqueue(1)
    wait_settled()
    assert running.stop() == 0
    assert "metrics" not in running.output


# ---- the recorder -----------------------------------------------------------------------------------


def told(**fields: Any) -> dict[str, Any]:
    return {
        "backend_alias": "default", "queue_name": "q", "task_path": "a.b", "seconds": 0.2, "waited_seconds": 3.0,
        **fields,
    }  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path, "worker-1", backend_alias="default", most_series=3)
    yield recorder
    recorder.close()
    recorder("job.executed", told())  # too late, and no error


def recorded(folder: Path) -> dict[str, Metric]:
    collect = MultiProcessCollector(None, path=str(folder)).collect()
    return {metric.name: metric for metric in collect}


def test_the_number_of_series_is_bounded(record: Recorder, tmp_path: Path) -> None:
    for n in range(50):
        record("job.executed", told(task_path=f"tasks.t{n}"))
    samples = recorded(tmp_path)["dj_queue_jobs_finished"].samples
    found = {(each.labels["queue"], each.labels["task"]): each.value for each in samples}
    assert found == {("q", "tasks.t0"): 1, ("q", "tasks.t1"): 1, ("q", "tasks.t2"): 1, ("other", "other"): 47}


def test_what_cannot_be_counted_is_left_out(record: Recorder, tmp_path: Path) -> None:
    record("job.executed", told(backend_alias="mail"))
    record("job.failed", {"job_id": "of recovery", "exception_class": "x", "message": ""})
    assert recorded(tmp_path) == {}
    record("job.failed", told(waited_seconds=None))
    metrics = recorded(tmp_path)
    assert total(metrics, "dj_queue_job_wait_seconds", "dj_queue_job_wait_seconds_count") == 0
    assert total(metrics, "dj_queue_job_duration_seconds", "dj_queue_job_duration_seconds_count") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0011, 3600, 1e9])
def test_buckets_hold_what_is_not_longer(record: Recorder, tmp_path: Path, seconds: float) -> None:
    record("job.executed", told(seconds=seconds))
    samples = recorded(tmp_path)["dj_queue_job_duration_seconds"].samples
    buckets = {float(each.labels["le"]): each.value for each in samples if "le" in each.labels}
    assert buckets == {bound: float(seconds <= bound) for bound in recorder.BUCKETS}


# ---- events -----------------------------------------------------------------------------------------


def test_a_subscriber_hears_what_it_asked_for_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def broken(event: str, fields: dict[str, object]) -> None:
        raise RuntimeError("nobody's business")

    def listen(event: str, fields: dict[str, object]) -> None:
        heard.append(event)

    for subscriber in (broken, listen):
        events.subscribe(subscriber, "job.executed")
    try:
        caplog.set_level("WARNING", "dj_queue")
        assert events.heard("job.failed", "job.executed")
        assert not events.heard("job.claimed")
        events.emit("job.claimed", job_id="1")
        events.emit("job.executed", job_id="1")
        assert heard == ["job.executed"]
        assert "a subscriber of job.executed failed" in caplog.text
    finally:
        for subscriber in (broken, listen):
            events.unsubscribe(subscriber)
    assert not events.heard("job.executed")


# ---- the setting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, RuntimeMetrics()),
        ({}, RuntimeMetrics()),
        ({"port": None}, RuntimeMetrics()),
        ({"port": 9808}, RuntimeMetrics({"default": 9808, "mail": 9808})),
        ({"port": {"mail": 0}, "address": "::"}, RuntimeMetrics({"mail": 0}, "::")),
        ({"most_series": 5}, RuntimeMetrics(most_series=5)),
    ],
)
def test_a_right_setting(settings: Any, aliases: Callable[..., None], given: Any, expected: RuntimeMetrics) -> None:
    aliases(default={}, mail={})
    settings.DJ_QUEUE_PROMETHEUS = given
    assert runtime_metrics() == expected
    assert check_setting() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (9808, 'DJ_QUEUE_PROMETHEUS: expected a mapping of options, or None, got 9808'),
        ({"port": "9808"}, 'DJ_QUEUE_PROMETHEUS["port"]: expected a whole number from 0 to 65535, got \'9808\''),
        ({"port": True}, "got True"),
        ({"port": 65536}, "got 65536"),
        ({"port": -1}, "got -1"),
        ({"port": {"nobody": 1}}, "DJ_QUEUE_PROMETHEUS[\"port\"][\"nobody\"]: expected a known option, got 1"),
        ({"ports": 1}, "did you mean 'port'?"),
        ({"address": "localhost"}, "expected an IP address such as '127.0.0.1', '0.0.0.0' or '::', got 'localhost'"),
        ({"address": None}, "got None"),
        ({"most_series": 0}, "expected a whole number from 1 to 10000, got 0"),
    ],
)  # fmt: skip
def test_mistakes_in_the_setting(settings: Any, given: Any, said: str) -> None:
    settings.DJ_QUEUE_PROMETHEUS = given
    with pytest.raises(ImproperlyConfigured) as refused:
        runtime_metrics()
    assert said in str(refused.value)
    (error,) = check_setting()
    assert (error.id, error.msg) == ("dj_queue_prometheus.E001", str(refused.value))


def test_all_mistakes_are_told_together(settings: Any) -> None:
    settings.DJ_QUEUE_PROMETHEUS = {"port": "x", "address": 1, "most_series": None, "nonsense": 1}
    with pytest.raises(ImproperlyConfigured) as refused:
        runtime_metrics()
    assert len(str(refused.value).splitlines()) == 6


def test_a_wrong_setting_does_not_keep_the_queue_from_running(listening: Callable[..., Runtime]) -> None:
    running = listening(settings="DJ_QUEUE_PROMETHEUS = {'port': 'x'}\n")
    enqueue(1)
    wait_settled()
    assert running.stop() == 0
    assert "hook:supervisor.start" in running.output
    assert "expected a whole number from 0 to 65535" in running.output


@pytest.mark.parametrize(
    ("setting", "token", "warned"),
    [
        (None, None, False),
        ({"address": "0.0.0.0"}, None, False),
        ({"port": 9000}, None, False),
        ({"port": 9000, "address": "::1"}, None, False),
        ({"port": 9000, "address": "0.0.0.0"}, None, True),
        ({"port": 9000, "address": "::"}, None, True),
        ({"port": 9000, "address": "0.0.0.0"}, "secret", False),
    ],
)
def test_deploying_an_open_address_is_warned_of(settings: Any, setting: Any, token: Any, warned: bool) -> None:
    settings.DJ_QUEUE_PROMETHEUS, settings.DJ_QUEUE_OBSERVABILITY_TOKEN = setting, token
    assert [warning.id for warning in check_open_address()] == ["dj_queue_prometheus.W001"] * warned
