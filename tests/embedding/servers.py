"""Real servers with the site behind them."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from dj_queue.models import Job, Process
from tests.conftest import Runtime, _plain, lines, wait_until

ROOT = Path(__file__).parent.parent.parent
SITE = "tests.embedding.site"

ASGI_SERVERS = {
    "uvicorn": ["uvicorn", "--no-access-log", "--host", "127.0.0.1", "--port", "{port}"],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}"],
    "granian": ["granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"],
}


class Server(Runtime):
    """A real web server on the test's database, in a process group of its own."""

    def __init__(
        self,
        kind: str,
        *arguments: str,
        app: str,
        options: dict[str, Any],
        environment: dict[str, str],
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        command = ASGI_SERVERS.get(kind) or ["gunicorn", "--bind", "127.0.0.1:{port}"]
        with tempfile.NamedTemporaryFile(prefix="dj-queue-server-", delete=False) as log:
            self.log = Path(log.name)
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(word.format(port=self.port) for word in command), *arguments, app],
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": f"{SITE}.settings",
                    "DJ_QUEUE_TEST_DATABASE": json.dumps(_plain(connection.settings_dict)),
                    "DJ_QUEUE_TEST_OPTIONS": json.dumps(options),
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                },
                cwd=self.log.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_serving(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the server ended with {self.process.returncode}:\n{self.output}")
            try:
                self.get("/pid")
            except (OSError, http.client.HTTPException):
                return False
            return True

        wait_until(answers, seconds=40, what=f"server ready:\n{self.output}")

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def enqueue(self, task: Any, *args: Any, path: str = "/enqueue", times: int = 1) -> Any:
        """Enqueue over HTTP; return the answer: the `ids` of the jobs, and the `pid` of who answered."""
        return self._ask("POST", path, json.dumps({"task": task.module_path, "args": args, "times": times}))

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise http.client.HTTPException(f"{response.status}: {text!r}")
            return json.loads(text)
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Load:
    """Enqueues over HTTP, hundreds of jobs a second, and counts what the server took on."""

    def __init__(self, task: Any, path: Path, *servers: Server) -> None:
        self.servers = list(servers)
        self.accepted: list[str] = []  # by label
        self.refused = 0
        self._task = task
        self._path = path
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(2)]

    def _run(self, number: int) -> None:
        n = 0
        while not self._over.is_set():
            n += 1
            label = f"{number}-{n}"
            try:
                self.servers[n % len(self.servers)].enqueue(self._task, str(self._path), label)
                self.accepted.append(label)
                # Or what is to be seen under load waits for the load alone, on a small machine.
                self._over.wait(0.005)
            except (OSError, http.client.HTTPException):
                self.refused += 1
                time.sleep(0.01)

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(30)

    def wait_more(self, count: int = 30) -> None:
        """Wait until so many more were taken on."""
        goal = len(self.accepted) + count
        wait_until(lambda: len(self.accepted) >= goal, seconds=40, what=f"{count} more jobs taken on")


def supervisors() -> list[int]:
    """The pids of the registered supervisors, oldest first."""
    return list(Process.objects.filter(kind="Supervisor").order_by("pk").values_list("pid", flat=True))


def wait_supervisor(*, but: int = 0, seconds: float = 20) -> int:
    """Wait until there is one supervisor, another than `but`; return its pid."""
    wait_until(lambda: [pid for pid in supervisors() if pid != but], seconds=seconds, what="a supervisor")
    return next(pid for pid in supervisors() if pid != but)


def wait_finished(*ids: str) -> list[Any]:
    """Wait until these jobs have succeeded; return what they returned."""
    jobs = Job.objects.filter(pk__in=ids)
    wait_until(lambda: jobs.finished().count() == len(ids), what="jobs finished")
    return [job.return_value for job in jobs]


def assert_one_after_the_other(ran: Path) -> None:
    """Two processes ran the task `tick`, and the second began after the first had ended."""
    ticks = [(line.split()[0], int(line.split()[2])) for line in lines(ran) if not line.endswith("end")]
    first, second = ticks[0][0], ticks[-1][0]
    assert {pid for pid, _ in ticks} == {first, second}
    assert first != second
    assert max(at for pid, at in ticks if pid == first) < min(at for pid, at in ticks if pid == second)
