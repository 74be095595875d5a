"""`manage.py dj_queue` and `dj_queue_health` as real processes: what they start, print, refuse and exit with."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Now
from django.tasks import default_task_backend
from django.utils import timezone

from dj_queue import __version__
from dj_queue.dialects import dialect_for
from dj_queue.models import FailedExecution, Job, Process, ReadyExecution
from dj_queue.runtime.pidfile import pidfile
from tests.conftest import alive, lines, wait_settled, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import ONE_THREAD, enqueue

MODES = pytest.mark.parametrize("mode", ["fork", "async"])

TWO_ALIASES = """
TASKS["critical"] = {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": []}
TASKS["external"] = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}
"""


@pytest.fixture
def refused(runtime):
    """Start a runtime that is to refuse; return what it said, once."""

    def start(*arguments, code=1, **given):
        running = runtime(*arguments, rows=None, **given)
        assert running.wait() == code, running.output
        assert not Process.objects.exists()
        assert "Traceback" not in running.output
        assert "Quit with Ctrl-C" not in running.output
        return running.output.strip()

    return start


@pytest.mark.executed
class TestStart:
    @MODES
    def test_rows_names_and_metadata(self, runtime, mode):
        options = {
            "mode": mode,
            "workers": [
                {"queues": ["email", "web*"], "threads": 2, "processes": 2, "polling_interval": 0.2},
                {"queues": "*"},
            ],
            "dispatchers": [{"batch_size": 50, "polling_interval": 0.5}, {"concurrency_maintenance": False}],
            "recurring": {"daily": {"task_path": "tests.project.tasks.add", "schedule": "0 3 * * *", "args": [1, 2]}},
        }
        worker_names = {"fork": ["worker-1-1", "worker-1-2", "worker-2"], "async": ["worker-1", "worker-2"]}[mode]
        names = [*worker_names, "dispatcher-1", "dispatcher-2", "scheduler-1"]
        running = runtime(options=options, rows=len(names))
        rows = {row.name: row for row in Process.objects.all()}
        supervisor = rows.pop(f"supervisor-{running.pid}")
        assert (supervisor.kind, supervisor.pid, supervisor.supervisor) == ("Supervisor", running.pid, None)
        assert supervisor.metadata == {
            "mode": mode,
            "standalone": True,
            "worker_count": len(worker_names),
            "dispatcher_count": 2,
            "has_scheduler": True,
        }
        assert sorted(rows) == sorted(names)
        assert {row.supervisor_id for row in rows.values()} == {supervisor.pk}
        assert {row.hostname for row in [supervisor, *rows.values()]} == {socket.gethostname()}
        assert {row.backend_alias for row in [supervisor, *rows.values()]} == {"default"}
        pids = [row.pid for row in rows.values()]
        if mode == "async":
            assert set(pids) == {running.pid}
            assert "every worker's `processes` counts as 1" in running.output
        else:
            assert len({running.pid, *pids}) == len(pids) + 1
            assert all(map(alive, pids))
        for name in worker_names:
            assert rows[name].kind == "Worker"
        assert rows[worker_names[0]].metadata == {"queues": ["email", "web*"], "threads": 2, "polling_interval": 0.2}
        assert rows["worker-2"].metadata == {"queues": ["*"], "threads": 3, "polling_interval": 0.1}
        assert [rows[f"dispatcher-{n}"].kind for n in (1, 2)] == ["Dispatcher"] * 2
        assert rows["dispatcher-1"].metadata == {
            "batch_size": 50,
            "polling_interval": 0.5,
            "concurrency_maintenance": True,
            "concurrency_maintenance_interval": 600.0,
        }
        assert rows["scheduler-1"].kind == "Scheduler"
        assert set(rows["scheduler-1"].metadata.pop("static_tasks")) == {"daily"}
        assert rows["scheduler-1"].metadata == {
            "dynamic_tasks_enabled": False,
            "polling_interval": 5.0,
            "static_task_count": 1,
            "cleanup_enabled": True,
        }
        assert running.stop() == 0
        assert not Process.objects.exists()

    def test_the_defaults(self, runtime):
        running = runtime(rows=3)
        names = set(Process.objects.exclude(pid=running.pid).values_list("name", flat=True))
        assert names == {"worker-1", "dispatcher-1", "scheduler-1"}
        assert Process.objects.get(name="worker-1").metadata == {"queues": ["*"], "threads": 3, "polling_interval": 0.1}
        assert running.stop() == 0

    @MODES
    def test_says_once_what_it_is_about_to_do(self, runtime, mode):
        workers = [{"queues": ["email", "web*"], "threads": 2}, {"threads": 1}]
        running = runtime("--mode", mode, options={"workers": workers}, rows=4)
        assert running.output.splitlines()[:6] == [
            f"dj-queue {__version__}: backend 'default', database 'default', mode {mode}",
            "  1 worker of 2 threads on queues email, web*",
            "  1 worker of 1 thread on queues *",
            "  1 dispatcher",
            "  scheduler with 0 recurring tasks in the settings",
            "Quit with Ctrl-C.",
        ]
        assert running.stop() == 0
        assert "Traceback" not in running.output

    def test_says_that_it_may_want_more_connections_than_there_are(self, runtime):
        with connection.cursor() as cursor:
            if not dialect_for("default").connection_limit(cursor):
                pytest.skip("the database sets no limit")
        running = runtime(options={"workers": {"threads": 5000}})
        assert "The processes of 'default' may open 5007 connections to the server of the database" in running.output
        assert "Lower `threads` or `processes`" in running.output
        assert running.stop() == 0

    def test_processes_are_named_for_ps(self, runtime, project, tmp_path):
        """By the kernel, as far as it goes, and in full by setproctitle, where that is installed."""
        running = runtime(rows=3)
        if Path("/proc/self/comm").exists():
            names = {row.name: Path(f"/proc/{row.pid}/comm").read_text().strip() for row in Process.objects.all()}
            assert names == {name: name[:15] for name in names}
        assert running.stop() == 0
        environment = project()
        titles = tmp_path / "titles"
        (tmp_path / "project" / "setproctitle.py").write_text(
            f"def setproctitle(text):\n    with open({str(titles)!r}, 'a') as file:\n        file.write(text + '\\n')\n"
        )
        running = runtime(environment=environment, rows=3)
        names = [f"supervisor-{running.pid}", "worker-1", "dispatcher-1", "scheduler-1"]
        wait_until(lambda: sorted(lines(titles)) == sorted(f"dj_queue {name}" for name in names))
        assert running.stop() == 0

    def test_children_inherit_no_open_connection(self, runtime, project, tmp_path):
        told = tmp_path / "told"
        code = f"""
from django.db import connection
from dj_queue import hooks

opened = []

@hooks.on_start
def use_a_connection(supervisor):
    connection.ensure_connection()
    opened.append(connection.connection)

def tell(runner):
    try:
        opened[0].cursor().execute("SELECT 1")
        state = "open"
    except Exception:
        state = "closed"
    if connection.connection is opened[0]:
        state = "shared"
    with open({str(told)!r}, "a") as file:
        file.write(f"{{runner.name}} {{state}}\\n")

hooks.on_worker_start(tell)
hooks.on_dispatcher_start(tell)
hooks.on_scheduler_start(tell)
"""
        running = runtime(environment=project(code), rows=3)
        names = ("worker-1", "dispatcher-1", "scheduler-1")
        wait_until(lambda: sorted(lines(told)) == sorted(f"{name} closed" for name in names))
        assert running.stop() == 0

    def test_under_somebody_who_ignores_its_children(self, runtime, project):
        """As some supervisors of processes do; it is inherited."""
        code = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        running = runtime(environment=project(code), rows=2)
        old = Process.objects.get(name="worker-1").pid
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: Process.objects.filter(name="worker-1").exclude(pid=old).exists())
        assert running.stop() == 0
        assert "Traceback" not in running.output

    @MODES
    def test_runs_jobs_of_each_kind(self, runtime, mode):
        calls = {
            "plain": (tasks.add, 1, 2),
            "async": (tasks.add_async, 3, 4),
            "context": (tasks.describe_context, "label"),
            "limited": (tasks.one_per_key, "k"),
            "raises": (tasks.fail, "it failed"),
            "exits": (tasks.raise_system_exit,),
            "returns a set": (tasks.return_set,),
        }
        ids = dict(zip(calls, enqueue(*calls.values()), strict=True))
        running = runtime(options={"mode": mode})
        wait_settled()
        results = {name: default_task_backend.get_result(job_id) for name, job_id in ids.items()}
        assert {name: result.status for name, result in results.items()} == {
            "plain": "SUCCESSFUL",
            "async": "SUCCESSFUL",
            "context": "SUCCESSFUL",
            "limited": "SUCCESSFUL",
            "raises": "FAILED",
            "exits": "FAILED",
            "returns a set": "FAILED",
        }
        assert results["plain"].return_value == 3
        assert results["async"].return_value == 7
        assert results["context"].return_value == {"label": "label", "attempt": 1, "id": ids["context"]}
        assert {result.attempts for result in results.values()} == {1}
        assert {tuple(result.worker_ids) for result in results.values()} == {("worker-1",)}
        assert FailedExecution.objects.get(job_id=ids["raises"]).exception_class == "builtins.ValueError"
        assert FailedExecution.objects.get(job_id=ids["exits"]).exception_class == "builtins.SystemExit"
        assert running.stop() == 0

    @MODES
    def test_a_scheduled_job_runs_when_it_is_due(self, runtime, mode):
        due = timezone.now() + timedelta(seconds=1)
        job_id = tasks.report_time.using(run_after=due).enqueue().id
        assert Job.objects.get(pk=job_id).status == "scheduled"
        running = runtime(options={"mode": mode, "dispatchers": {"polling_interval": 0.1}})
        wait_settled()
        assert 0 <= Job.objects.get(pk=job_id).return_value - due.timestamp() < 5
        assert running.stop() == 0

    def test_only_the_alias_it_was_given(self, runtime, project, tmp_path):
        ran = tmp_path / "ran"
        enqueue((tasks.append_line, str(ran), "default"))
        others = enqueue((tasks.append_line, str(ran), "critical"))
        Job.objects.filter(pk__in=others).update(backend_alias="critical")
        ReadyExecution.objects.filter(job_id__in=others).update(backend_alias="critical")
        running = runtime("--backend", "critical", environment=project(settings=TWO_ALIASES), rows=2)
        wait_until(lambda: lines(ran) == ["critical"])
        assert set(Process.objects.values_list("backend_alias", flat=True)) == {"critical"}
        assert "backend 'critical'" in running.output
        assert running.stop() == 0
        assert lines(ran) == ["critical"]
        assert Job.objects.ready().count() == 1


class TestOnly:
    def test_work(self, runtime, tmp_path):
        ran = tmp_path / "ran"
        running = runtime("--only-work", options=ONE_THREAD)
        due = timezone.now() + timedelta(seconds=0.1)
        tasks.append_line.using(run_after=due).enqueue(str(ran), "scheduled")
        wait_until(lambda: timezone.now() > due)
        enqueue((tasks.append_line, str(ran), "ready"))
        wait_until(lambda: lines(ran))
        assert Counter(Process.objects.values_list("kind", flat=True)) == {"Supervisor": 1, "Worker": 1}
        assert lines(ran) == ["ready"]
        assert Job.objects.scheduled().count() == 1
        assert "dispatcher" not in running.output
        assert "scheduler" not in running.output
        assert running.stop() == 0

    def test_dispatch(self, runtime, tmp_path):
        ran = tmp_path / "ran"
        running = runtime("--only-dispatch", options={"dispatchers": {"polling_interval": 0.1}})
        tasks.append_line.using(run_after=timezone.now() + timedelta(seconds=0.2)).enqueue(str(ran), "due")
        wait_until(lambda: Job.objects.ready().count() == 1)
        assert Counter(Process.objects.values_list("kind", flat=True)) == {"Supervisor": 1, "Dispatcher": 1}
        assert lines(ran) == []
        assert "worker" not in running.output
        assert running.stop() == 0

    def test_skip_recurring(self, runtime):
        running = runtime("--skip-recurring", rows=2)
        assert running.stop() == 0
        assert "scheduler" not in running.output
        running = runtime(environment={"DJ_QUEUE_SKIP_RECURRING": "yes"}, rows=2)
        assert not Process.objects.filter(kind="Scheduler").exists()
        assert running.stop() == 0

    def test_both_is_refused(self, refused):
        assert "--only-work --only-dispatch: expected at most one of the two, got both" in refused(
            "--only-work", "--only-dispatch"
        )


class TestRefusals:
    def test_a_backend_that_does_not_exist(self, refused):
        output = refused("--backend", "defualt")
        assert output == (
            """CommandError: TASKS["defualt"] does not exist. The aliases dj-queue manages: 'default'."""
            " Name one of them, or give this one the BACKEND 'dj_queue.backend.DjQueueBackend'."
        )

    def test_a_backend_of_somebody_else(self, refused, project):
        output = refused("--backend", "external", environment=project(settings=TWO_ALIASES))
        assert output.startswith(
            """CommandError: TASKS["external"] has the BACKEND 'django.tasks.backends.dummy.DummyBackend', so"""
        )
        assert "'default', 'critical'" in output

    def test_a_mode_there_is_not(self, refused):
        assert "invalid choice: 'threads'" in refused("--mode", "threads", code=2)

    def test_all_mistakes_of_the_settings_at_once(self, refused):
        output = refused(
            options={
                "workers": {"threads": 0, "polling_interval": -1, "procesess": 2},
                "shutdown_timeout": "soon",
                "on_thread_error": "nowhere.to_be_found",
            }
        )
        assert output.startswith("CommandError: dj-queue cannot use the configuration of 'default' (5 mistakes):")
        for place in (
            '["threads"]',
            '["polling_interval"]',
            "did you mean 'processes'?",
            '["shutdown_timeout"]',
            '["on_thread_error"]',
        ):
            assert output.count(place) == 1, output

    def test_an_environment_variable(self, refused):
        assert "DJ_QUEUE_SKIP_RECURRING" in refused(environment={"DJ_QUEUE_SKIP_RECURRING": "maybe"})
        assert "DJ_QUEUE_MODE" in refused(environment={"DJ_QUEUE_MODE": "threads"})

    @pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf", "1e9"])
    def test_a_wait_that_is_no_number_of_seconds(self, refused, seconds):
        output = refused(f"--wait={seconds}", code=2)
        assert f"argument --wait: expected a number of seconds from 0 to 86400 (a day), got {seconds!r}" in output

    def test_a_database_that_does_not_answer(self, refused, tmp_path):
        settings = {key: value for key, value in connection.settings_dict.items() if key != "TEST"}
        settings["HOST" if settings["HOST"] else "NAME"] = str(tmp_path / "nowhere" / "at-all")
        output = refused("--wait", "0", environment={"DJ_QUEUE_TEST_DATABASE": json.dumps(settings)})
        assert output.startswith("CommandError: The database 'default' does not answer (")
        assert len(output.splitlines()) == 1


class TestConfigFile:
    @pytest.fixture
    def file(self, tmp_path):
        def write(text):
            path = tmp_path / "dj_queue.yml"
            path.write_text(text)
            return str(path)

        return write

    def test_flat(self, runtime, file):
        path = file("mode: async\nworkers:\n  - queues: [email]\n    threads: 2\n")
        running = runtime("--config", path, options={"mode": "fork"}, rows=2)
        assert "mode async" in running.output
        assert Process.objects.get(name="worker-1").metadata["queues"] == ["email"]
        assert running.stop() == 0

    def test_by_backend(self, runtime, file, project):
        path = file("backends:\n  default: {mode: async}\n  critical: {workers: {threads: 7}}\n")
        environment = project(settings=TWO_ALIASES)
        running = runtime("--config", path, "--backend", "critical", environment=environment, rows=2)
        assert "mode fork" in running.output
        assert Process.objects.get(name="worker-1").metadata["threads"] == 7
        assert running.stop() == 0

    def test_the_flag_beats_the_variables_which_beat_the_file(self, runtime, file):
        path = file("mode: async\nworkers: {threads: 2}\n")
        running = runtime("--mode", "fork", environment={"DJ_QUEUE_CONFIG": path, "DJ_QUEUE_MODE": "async"}, rows=2)
        assert "mode fork" in running.output
        assert "1 worker of 2 threads" in running.output
        assert running.stop() == 0

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            pytest.param("mode: [fork", "expected valid YAML", id="malformed"),
            pytest.param("- mode: fork", "expected a mapping of options", id="a list"),
            pytest.param("backends:\n  nobody: {}", "expected an alias of TASKS, got 'nobody'", id="unknown backend"),
            pytest.param("backends: {}\nmode: fork", "expected alone at the top", id="both shapes"),
            pytest.param("workers: {threads: many}", "workers.threads: expected", id="wrong type"),
        ],
    )
    def test_what_is_wrong_with_it(self, refused, file, text, said):
        path = file(text)
        output = refused("--config", path)
        assert said in output
        assert path in output

    def test_missing(self, refused, tmp_path):
        path = str(tmp_path / "missing.yml")
        assert f"--config: expected a readable YAML file, got {path!r}" in refused("--config", path)

    def test_empty_says_nothing(self, runtime, file):
        running = runtime("--config", file(""))
        assert running.stop() == 0


@pytest.fixture
def unapplied(transactional_db):
    """The latest migration is not recorded; call to record it."""
    recorder = MigrationRecorder(connection)
    name = max(name for app, name in recorder.applied_migrations() if app == "dj_queue")
    recorder.record_unapplied("dj_queue", name)
    applied = []

    def apply():
        if not applied:
            applied.append(recorder.record_applied("dj_queue", name))

    apply.name = name
    yield apply
    apply()


class TestMigrations:
    def test_that_are_missing(self, refused, unapplied):
        output = refused("--wait", "0")
        assert output == (
            f"CommandError: The database 'default' lacks the migration {unapplied.name} of dj_queue."
            " Run: manage.py migrate dj_queue --database default"
        )

    def test_it_waits_for_one_that_runs(self, runtime, unapplied):
        running = runtime("--wait", "30", rows=None)
        wait_until(lambda: "Waiting up to 30 seconds." in running.output)
        assert not Process.objects.exists()
        unapplied()
        running.wait_ready()
        assert running.output.count("lacks the migration") == 1
        assert running.stop() == 0

    def test_and_can_be_stopped_meanwhile(self, runtime, unapplied):
        running = runtime("--wait", "60", rows=None)
        wait_until(lambda: "Waiting up to 60 seconds." in running.output)
        running.signal(signal.SIGTERM)
        assert running.wait() in (0, -signal.SIGTERM)


class TestPidfile:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "dj_queue.pid"

    @MODES
    def test_holds_the_pid_and_goes_at_the_end(self, runtime, path, mode):
        running = runtime(options={"supervisor_pidfile": str(path), "mode": mode}, rows=2)
        assert path.read_text().strip() == str(running.pid)
        assert sorted(path.parent.iterdir()) == [path]
        assert running.stop() == 0
        assert not path.exists()

    def test_refuses_a_second_supervisor(self, runtime, path):
        options = {"supervisor_pidfile": str(path)}
        first = runtime(options=options, rows=2)
        second = runtime(options=options, rows=None)
        assert second.wait() == 1
        assert f"CommandError: a dj_queue supervisor is already running (pid={first.pid})" in second.output
        assert f"supervisor_pidfile {str(path)!r}" in second.output
        assert "Traceback" not in second.output
        assert not Process.objects.filter(pid=second.pid).exists()
        # It has not touched what is the first one's.
        assert path.read_text().strip() == str(first.pid)
        assert alive(first.pid)
        assert first.stop() == 0
        assert not path.exists()

    @pytest.mark.parametrize(
        "content", ["{dead}", "{living}", "", "\0\0\0\0", " 7 \n", "0", "-1", "99999999999999999999"]
    )
    def test_takes_over_a_stale_file(self, runtime, path, content):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        # One that belongs to something else by now: this test's own process.
        path.write_text(content.format(dead=dead.pid, living=os.getpid()))
        running = runtime(options={"supervisor_pidfile": str(path)})
        assert path.read_text().strip() == str(running.pid)
        assert running.stop() == 0
        assert not path.exists()

    def test_a_killed_supervisor_leaves_it_and_the_next_takes_it_over(self, runtime, path):
        options = {"supervisor_pidfile": str(path)}
        first = runtime(options=options)
        first.signal(signal.SIGKILL)
        first.wait()
        assert path.exists()
        second = runtime(options=options)
        assert path.read_text().strip() == str(second.pid)
        assert second.stop() == 0

    def test_a_pid_that_has_become_our_own_is_stale(self, path):
        """In a container every supervisor has the same pid."""
        path.write_text(f"{os.getpid()}\n")
        with pidfile(str(path)):
            assert path.read_text().strip() == str(os.getpid())
        assert not path.exists()

    def test_a_folder_that_is_missing(self, refused, tmp_path):
        path = str(tmp_path / "missing" / "dj_queue.pid")
        assert refused(options={"supervisor_pidfile": path}) == (
            f"CommandError: supervisor_pidfile {path!r} cannot be written: No such file or directory."
            " Create its folder, or name another."
        )

    def test_a_folder_that_is_not_writable(self, refused):
        # As good for root as for anybody: nobody creates files there.
        path = "/proc/dj_queue.pid"
        if not Path("/proc").is_dir():
            pytest.skip("there is no folder here that nobody can write to")
        assert f"supervisor_pidfile {path!r} cannot be written" in refused(options={"supervisor_pidfile": path})

    def test_a_name_that_is_a_folder(self, refused, tmp_path):
        assert "is a folder" in refused(options={"supervisor_pidfile": str(tmp_path)})


class TestHealth:
    @pytest.fixture
    def health(self, runtime):
        def check(*arguments, environment=None):
            done = subprocess.run(
                [sys.executable, "-m", "django", "dj_queue_health", *arguments],
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.settings",
                    "DJ_QUEUE_TEST_DATABASE": json.dumps(
                        {key: value for key, value in connection.settings_dict.items() if key != "TEST"}
                    ),
                    **(environment or {}),
                },
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert "Traceback" not in done.stderr
            return done.returncode, (done.stdout + done.stderr).strip()

        return check

    def beat(self, *, age, alias="default"):
        row = Process.objects.create(kind="Worker", name=f"worker-{age}", pid=1, backend_alias=alias)
        Process.objects.filter(pk=row.pk).update(last_heartbeat_at=Now() - timedelta(seconds=age))

    def test_of_a_running_queue(self, runtime, health):
        running = runtime(rows=2)
        assert health() == (0, "healthy")
        assert health("--max-age", "60") == (0, "healthy")
        assert running.stop() == 0
        code, output = health()
        assert code == 1
        assert output == (
            "CommandError: unhealthy: no process of 'default' has had a heartbeat within 300 seconds."
            " Start one: manage.py dj_queue"
        )

    def test_by_age(self, health):
        self.beat(age=100)
        assert health() == (0, "healthy")
        assert health("--max-age", "120") == (0, "healthy")
        code, output = health("--max-age", "60")
        assert code == 1
        assert "within 60 seconds" in output
        options = json.dumps({"process_heartbeat_interval": 10, "process_alive_threshold": 50})
        code, output = health(environment={"DJ_QUEUE_TEST_OPTIONS": options})
        assert code == 1
        assert "within 50 seconds" in output

    @pytest.mark.parametrize("age", ["soon", "", "0", "-5", "1.5", "99999999999"])
    def test_an_age_that_is_none(self, health, age):
        code, output = health(f"--max-age={age}")
        assert code == 2
        assert "argument --max-age: expected a whole number of seconds from 1 to 3153600000" in output
        assert repr(age) in output

    def test_of_one_alias(self, health, project):
        self.beat(age=0, alias="critical")
        environment = project(settings=TWO_ALIASES)
        assert health("--backend", "critical", environment=environment) == (0, "healthy")
        assert health(environment=environment)[0] == 1
        code, output = health("--backend", "external", environment=environment)
        assert code == 1
        assert "is not dj-queue's" in output

    def test_of_a_database_that_does_not_answer(self, health, tmp_path):
        settings = {key: value for key, value in connection.settings_dict.items() if key != "TEST"}
        settings["HOST" if settings["HOST"] else "NAME"] = str(tmp_path / "nowhere" / "at-all")
        code, output = health(environment={"DJ_QUEUE_TEST_DATABASE": json.dumps(settings)})
        assert code == 1
        assert output.startswith("CommandError: unhealthy: the database 'default' does not answer: ")


@pytest.mark.executed
class TestReload:
    def supervisor(self):
        return Process.objects.filter(kind="Supervisor").order_by("-pk").values_list("pid", flat=True).first()

    def test_starts_again_when_code_changes_and_finishes_what_runs(self, runtime, project, tmp_path):
        ran, release = tmp_path / "ran", tmp_path / "release"
        running = runtime("--reload", options={"shutdown_timeout": 30}, environment=project(), rows=None)
        first = wait_until(self.supervisor)
        assert first != running.pid
        enqueue((tasks.wait_then_append, str(release), str(ran), "line"))
        wait_until(Path(f"{release}.started").exists)
        code = tmp_path / "project" / "around" / "setup.py"
        # The reloader learns what to watch some time after the runtime has started.
        wait_until(lambda: os.utime(code) or "changed, reloading" in running.output or not alive_rows(first))
        release.touch()
        wait_until(lambda: self.supervisor() not in (None, first))
        wait_settled()
        assert not alive(first)
        assert lines(ran) == ["line"]
        second = self.supervisor()
        running.signal(signal.SIGINT)
        assert running.wait() == 0
        assert not alive(second)
        assert not Process.objects.exists()

    @pytest.fixture
    def busy(self, runtime, project, tmp_path):
        """A runtime that reloads, in the middle of a job; its processes' pids, as long as they live."""
        release = tmp_path / "release"
        enqueue((tasks.wait_then_append, str(release), str(tmp_path / "ran"), "line"))
        running = runtime("--reload", options={"shutdown_timeout": 60}, environment=project(), rows=None)
        wait_until(Path(f"{release}.started").exists)
        group = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        pids = [pid for pid in group if alive(pid) and pid != running.pid and _group(pid) == running.pid]
        return running, lambda: [pid for pid in pids if alive(pid)]

    @pytest.mark.parametrize(
        ("number", "to"),
        [(signal.SIGTERM, "the process"), (signal.SIGINT, "the process"), (signal.SIGINT, "its group")],
        ids=["SIGTERM", "SIGINT", "Ctrl-C"],
    )
    def test_a_stop_drains_and_ends_every_process(self, busy, tmp_path, number, to):
        running, others = busy
        assert len(others()) >= 3  # the autoreloader, the supervisor, and its children
        if to == "its group":  # as Ctrl-C in a terminal does
            os.killpg(running.pid, number)
        else:
            running.signal(number)
        # Idle ones have ended; what runs goes on.
        wait_until(lambda: not Process.objects.filter(kind="Dispatcher").exists())
        assert running.process.poll() is None
        (tmp_path / "release").touch()
        assert running.wait() == 0
        assert others() == []
        assert lines(tmp_path / "ran") == ["line"]
        assert Job.objects.get().status == "finished"
        assert not Process.objects.exists()

    def test_a_second_ctrl_c_hurries(self, busy, tmp_path):
        running, others = busy
        os.killpg(running.pid, signal.SIGINT)
        wait_until(lambda: not Process.objects.filter(kind="Dispatcher").exists())
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait() == 0
        assert others() == []
        assert Job.objects.get().status == "failed"
        assert not Process.objects.exists()


def _group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def alive_rows(pid):
    return Process.objects.filter(pid=pid, children__kind="Scheduler").exists()
