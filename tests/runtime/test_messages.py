"""What the runtime says of itself, and what it offers to those who ask."""

import os
import socket
import subprocess
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command

from dj_queue.config import backend_config
from dj_queue.models import Process
from dj_queue.operations import processes
from dj_queue.runtime import host
from dj_queue.runtime.runner import SupervisorSeen
from dj_queue.runtime.supervisor import AsyncSupervisor
from tests.conftest import lines, wait_until

MODES = pytest.mark.parametrize("mode", ["fork", "async"])


class TestStartAndStop:
    @MODES
    def test_each_says_a_line(self, runtime, mode):
        running = runtime(options={"mode": mode}, rows=2)
        name = f"dj_queue supervisor-{running.pid}"
        wait_until(lambda: f"{name} has started worker-1, dispatcher-1" in running.output)
        assert f" of backend 'default' on database 'default', mode {mode}." in running.output
        assert running.stop() == 0
        assert f"{name} of backend 'default' has stopped: nothing is left running." in running.output

    @pytest.mark.django_db(transaction=True)
    def test_of_an_embedded_one_the_log_tells(self, caplog):
        caplog.set_level("INFO", logger="dj_queue")
        supervisor = AsyncSupervisor(backend_config(), standalone=False)
        supervisor.start()
        supervisor.stop()
        said = [record.getMessage() for record in caplog.records if supervisor.name in record.getMessage()]
        assert "has started" in said[0]
        assert "has stopped" in said[-1]


class TestHookedSupervisor:
    @MODES
    def test_a_runner_offers_its_supervisor(self, runtime, project, tmp_path, mode):
        seen = tmp_path / "seen"
        code = (
            "from pathlib import Path\nfrom dj_queue.hooks import on_worker_start\n"
            "def look(worker):\n"
            "    s = worker.supervisor\n"
            f"    Path({str(seen)!r}).write_text("
            "f'{s.pk} {s.id} {s.name} {s.pid} {s.kind} {s.hostname} {s.backend_alias}\\n')\n"
            "on_worker_start(look)\n"
        )
        running = runtime(options={"mode": mode}, environment=project(code), rows=2)
        wait_until(lambda: lines(seen))
        row = Process.objects.get(kind="Supervisor")
        assert lines(seen) == [f"{row.pk} {row.pk} {row.name} {running.pid} Supervisor {socket.gethostname()} default"]

    def test_it_equals_its_id(self):
        seen = SupervisorSeen(7, "supervisor-1", 1, "here", "default")
        assert seen == 7
        assert seen == SupervisorSeen(7, "supervisor-1", 1, "here", "default")
        assert seen != 8
        assert (int(seen), hash(seen), str(seen), seen.process_id) == (7, hash(7), "supervisor-1", 7)


@pytest.mark.django_db(transaction=True)
class TestHealth:
    @pytest.fixture(autouse=True)
    def rows(self):
        for kind, hostname in (("Dispatcher", socket.gethostname()), ("Worker", "elsewhere")):
            processes.register(backend_config(), kind=kind, name=kind.lower(), pid=1, hostname=hostname, metadata={})

    @pytest.mark.parametrize(
        "asked",
        [[], ["--kind", "Worker"], ["--kind", "worker"], ["--host"], ["--host", "elsewhere", "--kind=Worker"]],
    )
    def test_healthy(self, asked):
        out = StringIO()
        call_command("dj_queue_health", *asked, stdout=out)
        assert out.getvalue() == "healthy\n"

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            (["--kind", "Scheduler"], "no scheduler of 'default' has had a heartbeat within 300 seconds"),
            (["--host", "--kind", "Worker"], f"no worker of 'default' on host {socket.gethostname()!r} has had"),
            (["--host", "nowhere"], "no process of 'default' on host 'nowhere' has had"),
        ],
    )
    def test_unhealthy(self, asked, said):
        with pytest.raises(CommandError, match="unhealthy: ") as caught:
            call_command("dj_queue_health", *asked)
        assert said in str(caught.value)

    def test_a_kind_there_is_not(self):
        with pytest.raises(CommandError, match="invalid choice: 'Wrker'"):
            call_command("dj_queue_health", "--kind", "wrker")


class TestHost:
    def test_what_enqueues_can_be_imported_where_nothing_forks(self):
        """As on Windows, where none of these is there."""
        code = """
import os, sys
for name in ("fork", "forkpty", "register_at_fork"):
    delattr(os, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
import django
django.setup()
import dj_queue.api, dj_queue.checks, dj_queue.testing, dj_queue.views
from django.tasks import default_task_backend
print(type(default_task_backend).__name__, default_task_backend.supports_get_result)
"""
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.split()[1:] == ["True"], done.stderr

    @pytest.fixture
    def lacking(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "fcntl", None)

    @pytest.mark.usefixtures("lacking")
    def test_a_system_without_what_it_takes(self):
        with pytest.raises(host.UnsupportedHostError, match=r"this one lacks fcntl\. Enqueueing works here"):
            host.require()
        with pytest.raises(CommandError, match="Linux, macOS and other Unix systems only"):
            call_command("dj_queue")

    @pytest.mark.parametrize(
        ("module", "attribute", "library"),
        [("gevent.monkey", "is_module_patched", "gevent"), ("eventlet.patcher", "is_monkey_patched", "eventlet")],
    )
    def test_threads_that_are_none(self, monkeypatch, module, attribute, library):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{attribute: lambda name: True}))
        with pytest.raises(host.UnsupportedHostError, match=f"{library} has replaced its threads"):
            AsyncSupervisor(backend_config(), standalone=False)
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{attribute: lambda name: False}))
        host.require()

    def test_a_web_server_with_such_threads_serves_all_the_same(self, monkeypatch, caplog):
        from dj_queue_gunicorn.candidate import Candidate

        monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: True))
        candidate = Candidate(SimpleNamespace(age=1, alive=True), SimpleNamespace())
        candidate.start()
        candidate.stop()
        assert "gevent has replaced its threads" in caplog.text
