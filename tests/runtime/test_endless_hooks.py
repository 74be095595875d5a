"""A hook that does not return holds up no stop."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dj_queue.models import FailedExecution, Job, Process
from tests.conftest import lines, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import ONE_THREAD, enqueue

ENDLESS = """
import threading
from pathlib import Path
from dj_queue.hooks import register_hook

@register_hook({event!r})
def endless(process):
    Path({path!r}).touch()
    threading.Event().wait()
"""


@pytest.fixture
def hooked(tmp_path: Path, project: Callable[..., Any]) -> Callable[[str], dict[str, Any]]:
    def environment(event: str) -> dict[str, Any]:
        return {"environment": project(ENDLESS.format(event=event, path=str(tmp_path / "reached")))}

    return environment


@pytest.mark.parametrize("mode", ["fork", "async"])
@pytest.mark.parametrize("event", ["supervisor.stop", "supervisor.exit", "worker.stop"])
def test_of_a_stop(event: str, mode: str, runtime: Any, hooked: Any, tmp_path: Path, ran: Path, release: Path) -> None:
    enqueue((tasks.wait_then_append, str(release), str(ran), "ran"))
    options = ONE_THREAD | {"mode": mode, "shutdown_timeout": 1.5}
    running = runtime(options=options, **hooked(event))
    wait_until(Path(f"{release}.started").exists)
    began = time.monotonic()
    running.signal(signal.SIGTERM)
    if event != "supervisor.exit":
        wait_until((tmp_path / "reached").exists)
    release.touch()
    assert running.wait(20) == 0
    # Its time, two seconds of grace, and what a loaded machine takes.
    assert time.monotonic() - began < 1.5 + 2 + 4
    assert lines(ran) == ["ran"]
    assert Job.objects.get().finished_at is not None
    assert not FailedExecution.objects.exists()
    assert not Process.objects.exists()
    assert f"a hook of {event} has not returned" in running.output


def test_of_a_start(runtime: Any, hooked: Any, tmp_path: Path) -> None:
    running = runtime(rows=None, options={"shutdown_timeout": 1}, **hooked("supervisor.start"))
    wait_until((tmp_path / "reached").exists)
    running.signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert "told to stop by SIGTERM before the hook had returned" in running.output
    assert not Process.objects.exists()
