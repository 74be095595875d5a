"""The database under test, real runtimes, and waiting."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import databases

def pytest_report_header() -> str:
    return f"database under test: {databases.VENDOR}"


def wait_until(condition: Callable[[], Any], *, seconds: float = 20, what: str = "") -> Any:
    """Wait until the condition is true and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what or condition}", pytrace=True)
        time.sleep(0.02)
    return value


class Runtime:
    """A real `manage.py dj_queue` on the test's database, in a process group of its own."""

    def __init__(self, *arguments: str, options: dict[str, Any], environment: dict[str, str]) -> None:
        from django.db import connection

        with tempfile.NamedTemporaryFile(prefix="dj-queue-runtime-", delete=False) as log:
            self.log = Path(log.name)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "django", "dj_queue", *arguments],
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.settings",
                    "DJ_QUEUE_TEST_DATABASE": json.dumps(_plain(connection.settings_dict)),
                    "DJ_QUEUE_TEST_OPTIONS": json.dumps(options),
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                },
                cwd=Path(__file__).parent.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_ready(self, *, rows: int = 1) -> None:
        """Wait until the supervisor's row and so many runners' rows are there."""
        from dj_queue.models import Process

        def there() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the runtime ended with {self.process.returncode}:\n{self.output}")
            supervisors = Process.objects.filter(pid=self.pid, kind="Supervisor")
            return Process.objects.filter(supervisor__in=supervisors).count() >= rows

        wait_until(there, what=f"runtime ready with {rows} runners:\n{self.output}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        """Wait for the end; return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the runtime did not end within {seconds} s:\n{self.output}")

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End every process of the group, whatever state it is in."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.unlink(missing_ok=True)


@pytest.fixture
def runtime(transactional_db: None) -> Iterator[Callable[..., Runtime]]:
    """Start runtimes: `runtime("--mode", "async", options={...})`."""
    started: list[Runtime] = []

    def start(
        *arguments: str,
        options: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        rows: int | None = 1,
    ) -> Runtime:
        running = Runtime(*arguments, options=options or {}, environment=environment or {})
        started.append(running)
        if rows is not None:
            running.wait_ready(rows=rows)
        return running

    yield start
    for running in started:
        running.close()


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """A connection's settings as JSON holds them."""
    return {key: value for key, value in settings.items() if key != "TEST"}
