"""Claim, run, finish under load; wake-up; hooks and events of a running queue."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.tasks import TaskResultStatus, default_task_backend
from django.test import override_settings
from django.utils import timezone

from dj_queue import hooks
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.error_reporting import report
from dj_queue.models import ClaimedExecution, FailedExecution, Job, Process
from dj_queue.operations import execution
from dj_queue.runtime.pool import Pool
from dj_queue.runtime.wakeup import Wakeup
from tests import databases
from tests.conftest import Counts, lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import EAGER, ONE_THREAD, WATCHFUL, enqueue, shorts
from tests.working import WORKER, claim, run, states


@pytest.fixture
def listens(transactional_db):
    """Skip where an idle worker can only poll."""
    if not dialect_for("default").listen(connection):
        pytest.skip("the database cannot wake a worker")
    connection.close()


class TestClaim:
    @pytest.mark.parametrize("code", ["", EAGER], ids=["as measured", "always ahead"])
    def test_what_waits_behind_a_long_job_goes_to_whoever_is_idle(self, runtime, project, ran, tmp_path, code):
        release = tmp_path / "release"
        enqueue(*shorts(ran, "before", 100))
        enqueue((tasks.wait_then_append, str(release), str(ran), "long"), *shorts(ran, "after", 100))
        options = {"workers": {"threads": 1, "processes": 2, "polling_interval": 0.05}}
        running = runtime(options=options, environment=project(code), rows=2)
        wait_until(lambda: Job.objects.finished().count() == 200, what="all but the long one are done meanwhile")
        assert ClaimedExecution.objects.count() == 1
        release.touch()
        wait_settled()
        assert Counter(lines(ran)).most_common(1)[0][1] == 1
        assert len(lines(ran)) == 201
        assert running.stop() == 0

    def test_long_jobs_are_not_claimed_before_a_thread_is_free(self, runtime, tmp_path):
        releases = [tmp_path / f"release{n}" for n in range(4)]
        enqueue(*((tasks.wait_for_file, str(path)) for path in releases))
        running = runtime(options={"workers": {"threads": 2, "polling_interval": 0.05}})
        for done, path in enumerate(releases):
            wait_until(Path(f"{path}.started").exists)
            wait_until(lambda done=done: Job.objects.finished().count() == done)
            assert ClaimedExecution.objects.count() <= 2
            path.touch()
        wait_settled()
        assert running.stop() == 0


class TestFinish:
    def test_an_idle_worker_writes_a_finished_job_at_once(self, runtime):
        running = runtime(options=ONE_THREAD, rows=1)
        delays = []
        for _ in range(5):
            (job_id,) = enqueue((tasks.report_time,))
            job = wait_until(lambda job_id=job_id: Job.objects.finished().filter(pk=job_id).first())
            delays.append(job.finished_at.timestamp() - job.return_value)
        assert min(delays) < 0.05
        assert sorted(delays)[2] < 0.2
        assert running.stop() == 0

    @pytest.mark.django_db(transaction=True)
    def test_an_outcome_that_the_database_refuses_fails_alone(self, caplog):
        caplog.set_level(logging.INFO, "dj_queue")
        ids = enqueue(*((tasks.add, n, 0) for n in range(5)))
        done = run(claim())
        done[2].outcome = done[2].outcome._replace(return_value="{")  # no JSON
        recorded = execution.finish(backend_config(), done, worker=WORKER)
        execution.announce(recorded)
        assert [str(job.claim.job_id) for job in recorded] == ids
        assert states() == {"finished": 4, "failed": 1}
        failed = FailedExecution.objects.get()
        assert str(failed.job_id) == ids[2]
        assert failed.exception_class.startswith("django.db.utils.")
        assert failed.message
        result = default_task_backend.get_result(ids[2])
        assert result.status is TaskResultStatus.FAILED
        assert result.attempts == 1
        assert [record.getMessage() for record in caplog.records].count("job.failed") == 1

    def test_refused_outcomes_do_not_stop_a_worker(self, runtime, project, ran):
        code = (
            "from dj_queue.operations import execution\n"
            "run = execution.run\n"
            "def poisoned(job, config, *, worker):\n"
            "    run(job, config, worker=worker)\n"
            "    if job.outcome.return_value == '13':\n"
            "        job.outcome = job.outcome._replace(return_value='{')\n"
            "execution.run = poisoned\n"
        )
        enqueue(*((tasks.add, n, 0) for n in range(50)))
        running = runtime(environment=project(code), rows=2)
        pid = pid_of("worker-1")
        wait_settled()
        assert states() == {"finished": 49, "failed": 1}
        assert Job.objects.failed().get().payload["args"] == [13, 0]
        assert pid_of("worker-1") == pid
        assert running.stop() == 0


class TestWakeUp:
    # After a job, the next look for work is five seconds away.
    RARELY = "from dj_queue.runtime import worker\nworker._FIRST_POLL = 5.0\n"

    def start_after(self, *, run_after=None):
        task = tasks.report_time.using(run_after=run_after) if run_after else tasks.report_time
        began = time.time()
        job_id = task.enqueue().id
        job = wait_until(lambda: Job.objects.finished().filter(pk=job_id).first())
        return job.return_value - (run_after.timestamp() if run_after else began)

    def test_by_the_database_is_faster_than_polling(self, listens, runtime, project):
        running = runtime(options={"workers": {"polling_interval": 5}}, environment=project(self.RARELY), rows=2)
        self.start_after()
        assert max(self.start_after() for _ in range(3)) < 1
        assert running.stop() == 0

    def test_also_for_what_becomes_due(self, listens, runtime, project):
        options = {"workers": {"polling_interval": 5}, "dispatchers": {"polling_interval": 0.1}}
        running = runtime(options=options, environment=project(self.RARELY), rows=2)
        self.start_after()
        assert self.start_after(run_after=timezone.now() + timedelta(seconds=0.5)) < 1.5
        assert running.stop() == 0

    def test_also_for_what_was_blocked(self, listens, runtime, project, ran, tmp_path):
        release = tmp_path / "release"
        options = {"workers": {"polling_interval": 5, "threads": 2}}
        running = runtime(options=options, environment=project(self.RARELY), rows=2)
        enqueue((tasks.wait_in_slot, "k", str(release), str(ran), "first"), (tasks.line_in_slot, "k", str(ran), "next"))
        wait_until(Path(f"{release}.started").exists)
        began = time.monotonic()
        release.touch()
        wait_until(lambda: lines(ran) == ["first", "next"])
        assert time.monotonic() - began < 2
        assert running.stop() == 0

    def test_polling_alone_works_too(self, runtime, ran):
        running = runtime(options=ONE_THREAD | {"listen_notify": False, "dispatchers": {"polling_interval": 0.1}})
        self.start_after()
        assert self.start_after() < 1
        assert self.start_after(run_after=timezone.now() + timedelta(seconds=0.3)) < 2
        assert running.stop() == 0

    def test_a_word_in_between_is_not_lost(self):
        """Set again while the last word is taken out: the next sleep must hear the word after that."""
        wakeup = Wakeup()
        reader = wakeup._reader

        class Interrupted:
            fileno = reader.fileno

            def recv(self, size):
                data = reader.recv(size)
                wakeup.set()
                return data

        wakeup.set()
        with mock.patch.object(wakeup, "_reader", Interrupted()):
            # Endless if each read finds a byte: what was already said is not said again.
            wakeup.wait(0)
        wakeup.wait(0)
        wakeup.set()
        began = time.monotonic()
        wakeup.wait(10)
        assert time.monotonic() - began < 5
        wakeup.close()


ENQUEUER = """
import sys

import django

django.setup()

from tests.project.tasks import append_line

for n in range(int(sys.argv[2])):
    append_line.enqueue(sys.argv[1], f"single{n}")
"""


class TestThroughput:
    JOBS, SINGLES = 10_000, 1_000

    def test_ten_thousand_jobs_none_lost_none_doubled(self, runtime, ran):
        calls = shorts(ran, "bulk", self.JOBS - self.SINGLES)
        for start in range(0, len(calls), 1000):
            enqueue(*calls[start : start + 1000])
        running = runtime(options={"workers": {"threads": 4, "processes": 2}}, rows=3)
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DJ_QUEUE_TEST_DATABASE": json.dumps(
                {key: value for key, value in connection.settings_dict.items() if key != "TEST"}
            ),
        }
        enqueuer = subprocess.run(
            [sys.executable, "-c", ENQUEUER, str(ran), str(self.SINGLES)],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert enqueuer.returncode == 0, enqueuer.stderr
        wait_settled(seconds=90)
        counts = Counts("10,000 jobs through 2 processes of 4 threads", ran, running)
        retried = running.output.splitlines().count("transaction.retried")
        print(f"[{databases.VENDOR}] transactions that collided and were run again: {retried}")
        assert counts | {"given_back": 0} == {
            "jobs": 10_000, "finished": 10_000, "failed": 0, "given_back": 0, "doubled": 0,
        }  # fmt: skip
        assert len(lines(ran)) == 10_000
        assert Counter(len(names) for names in Job.objects.values_list("worker_ids", flat=True)) == {1: 10_000}
        for output in (running.output, enqueuer.stderr):
            assert "locked" not in output
            assert "Traceback" not in output
        assert running.stop() == 0

    def test_nothing_is_kept_of_jobs_that_are_not_to_be_preserved(self, runtime, ran):
        enqueue(*shorts(ran, "job", 200), (tasks.fail,))
        running = runtime(options={"preserve_finished_jobs": False})
        wait_until(lambda: Job.objects.count() == 1 and Job.objects.failed().count() == 1)
        assert len(set(lines(ran))) == len(lines(ran)) == 200
        assert running.stop() == 0


@pytest.fixture
def clean_hooks():
    hooks.clear_hooks()
    yield
    hooks.clear_hooks()


@pytest.mark.usefixtures("clean_hooks")
class TestHooks:
    def test_run_in_the_order_of_their_registration(self):
        seen = []
        hooks.on_worker_start(lambda process: seen.append(("first", process)))

        @hooks.register_hook("worker.start")
        def second(process):
            seen.append(("second", process))

        hooks.register_hook("worker.start", lambda process: seen.append(("third", process)))
        hooks.on_worker_stop(lambda process: seen.append(("other", process)))
        hooks.run_hooks("worker.start", "runner", backend_config())
        assert seen == [("first", "runner"), ("second", "runner"), ("third", "runner")]

    def test_decorators_return_the_function(self):
        def hook(process):
            pass

        assert hooks.on_exit(hook) is hook
        assert hooks.register_hook("scheduler.exit", hook) is hook
        assert hooks.register_hook("scheduler.exit")(hook) is hook

    def test_helpers_are_twelve(self):
        seen = []
        kinds = {"": "supervisor", "worker_": "worker", "dispatcher_": "dispatcher", "scheduler_": "scheduler"}
        for prefix, kind in kinds.items():
            for moment in ("start", "stop", "exit"):
                getattr(hooks, f"on_{prefix}{moment}")(
                    lambda event, name=f"{kind}.{moment}": seen.append((event, name))
                )
        for event in hooks.EVENTS:
            hooks.run_hooks(event, event, backend_config())
        assert len(seen) == 12
        assert all(event == name for event, name in seen)

    def test_an_unknown_event_is_refused_with_the_known_ones(self):
        with pytest.raises(ValueError, match=r"'worker\.begin' is no hook event\. Use one of supervisor\.start,"):
            hooks.register_hook("worker.begin", print)
        with pytest.raises(ValueError, match=r"'worker\.begin' is no hook event\. Use one of supervisor\.start,"):
            hooks.clear_hooks("worker.begin")

    def test_one_that_exits_has_failed_and_no_more(self, caplog):
        """It must not end a runner on the way to giving back what it has claimed."""
        seen = []

        @hooks.on_worker_stop
        def leave(process):
            raise SystemExit(2)

        hooks.on_worker_stop(seen.append)
        hooks.run_hooks("worker.stop", "runner", backend_config())
        assert seen == ["runner"]
        assert [record.thread_error_type for record in caplog.records] == ["SystemExit"]

    def test_one_that_fails_is_reported_and_the_next_ones_run(self, caplog):
        seen = []
        for name in ("before", "fails", "after"):
            hooks.on_start(lambda process, name=name: seen.append(name) or (1 / 0 if name == "fails" else None))
        hooks.run_hooks("supervisor.start", None, backend_config())
        assert seen == ["before", "fails", "after"]
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.name == "dj_queue"
        assert record.event == "dj_queue.thread_error"
        assert record.backend_alias == "default"
        assert record.thread_error_context == "hook:supervisor.start"
        assert record.thread_error_type == "ZeroDivisionError"
        assert record.exc_info

    def test_clear(self):
        seen = []
        hooks.on_start(seen.append)
        hooks.on_stop(seen.append)
        hooks.clear_hooks("supervisor.start")
        for event in ("supervisor.start", "supervisor.stop"):
            hooks.run_hooks(event, event, backend_config())
        assert seen == ["supervisor.stop"]
        hooks.clear_hooks()
        hooks.run_hooks("supervisor.stop", "again", backend_config())
        assert seen == ["supervisor.stop"]

    RECORDING = """
import json
from dj_queue import hooks
from dj_queue.models import Process

def record(event):
    def hook(process):
        registered = Process.objects.filter(name=process.name, pid=process.pid).exists()
        fields = [process.name, process.kind, process.pid, process.hostname, process.metadata, process.backend_alias]
        with open({path!r}, "a") as file:
            file.write(json.dumps([event, registered, *fields, process.supervisor and process.supervisor.id]) + chr(10))
    hooks.register_hook(event, hook)

for event in hooks.EVENTS:
    record(event)
"""

    @pytest.mark.parametrize("mode", ["fork", "async"])
    def test_in_a_running_queue(self, runtime, project, tmp_path, mode):
        path = tmp_path / "hooks"
        running = runtime(options={"mode": mode}, environment=project(self.RECORDING.format(path=str(path))), rows=2)
        kinds = ("supervisor", "worker", "dispatcher", "scheduler")
        wait_until(lambda: {f"{kind}.start" for kind in kinds} == {json.loads(line)[0] for line in lines(path)})
        rows = {row.name: row for row in Process.objects.all()}
        assert running.stop() == 0
        calls = [json.loads(line) for line in lines(path)]
        events = [call[0] for call in calls]
        assert len(set(events)) == len(events)
        assert events[0] == "supervisor.start"
        assert events[-1] == "supervisor.exit"
        for kind in kinds:
            moments = [event for event in events if event.startswith(kind)]
            assert moments == [f"{kind}.start", f"{kind}.stop", f"{kind}.exit"]
        assert events.index("supervisor.stop") < events.index("worker.stop")
        for event, registered, name, kind, pid, hostname, metadata, alias, supervisor in calls:
            assert registered is (not event.endswith(".exit")), event
            row = rows[name]
            assert (kind, pid, hostname, metadata) == (row.kind, row.pid, row.hostname, row.metadata)
            assert (alias, supervisor) == ("default", row.supervisor_id)
            assert event.startswith(row.kind.lower())

    REPORTING = """
from dj_queue.hooks import on_start, on_stop

def report(error):
    with open({path!r}, "a") as file:
        file.write(f"{{type(error).__name__}}: {{error}}" + chr(10))
    if "second" in str(error):
        raise RuntimeError("the callback is broken")

@on_start
def first(process):
    raise ValueError("first")

@on_stop
def second(process):
    raise ValueError("second")
"""

    @pytest.mark.parametrize("failure", [RuntimeError, SystemExit])
    def test_a_callback_that_fails_ends_nobody(self, caplog, monkeypatch, failure):
        def fail(error):
            raise failure("the callback")

        monkeypatch.setattr("tests.working.name_case", fail)
        config = replace(backend_config(), on_thread_error="tests.working.name_case")
        report(config, ValueError("the error"), "worker.heartbeat")
        assert [(record.event, record.thread_error_type) for record in caplog.records] == [
            ("dj_queue.thread_error", "ValueError"),
            ("dj_queue.thread_error_callback_failed", failure.__name__),
        ]

    def test_their_failures_go_to_on_thread_error(self, runtime, project, tmp_path):
        path = tmp_path / "errors"
        running = runtime(
            options={"on_thread_error": "around.setup.report"},
            environment=project(self.REPORTING.format(path=str(path))),
            rows=2,
        )
        assert running.stop() == 0
        assert lines(path) == ["ValueError: first", "ValueError: second"]
        logged = [json.loads(line) for line in lines(tmp_path / "events")]
        errors = [record for record in logged if record["level"] == "ERROR"]
        # What the callback took is its own affair; what it failed at is logged, the error and its own.
        assert [(record["extra"]["event"], record["extra"]["thread_error_type"]) for record in errors] == [
            ("dj_queue.thread_error", "ValueError"),
            ("dj_queue.thread_error_callback_failed", "RuntimeError"),
        ]
        assert {record["extra"]["thread_error_context"] for record in errors} == {"hook:supervisor.stop"}
        assert {record["extra"]["backend_alias"] for record in errors} == {"default"}


class TestEvents:
    def test_of_a_running_queue(self, runtime, project, ran, tmp_path):
        ok, bad = enqueue((tasks.append_line, str(ran), "line"), (tasks.fail, "it failed"))
        first, second = enqueue((tasks.line_in_slot, "k", str(ran), "a"), (tasks.line_in_slot, "k", str(ran), "b"))
        running = runtime(options=ONE_THREAD | WATCHFUL, environment=project(), rows=2)
        wait_settled()
        worker = pid_of("worker-1")
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: pid_of("worker-1") not in (0, worker))
        stale = Process.objects.create(kind="Worker", name="worker-9", pid=999_999)
        Process.objects.filter(pk=stale.pk).update(last_heartbeat_at=timezone.now() - timedelta(hours=1))
        wait_until(lambda: not Process.objects.filter(pk=stale.pk).exists())
        assert running.stop() == 0
        logged = [json.loads(line) for line in lines(tmp_path / "events")]
        events = [record for record in logged if "dj_queue" in record["extra"]]
        assert {record["level"] for record in events} == {"INFO"}
        assert all(record["message"] == record["extra"]["event"] for record in events)

        def fields(event):
            return [record["extra"]["dj_queue"] for record in events if record["message"] == event]

        place = {"queue_name": "default", "priority": 0}
        assert fields("job.claimed") == [{"job_id": job_id, **place} for job_id in (ok, bad, first, second)]

        def outcome(fields, task_path):
            assert fields.pop("seconds") >= 0
            assert fields.pop("waited_seconds") >= 0
            assert fields.pop("backend_alias") == fields.pop("queue_name") == "default"
            assert fields.pop("task_path") == f"tests.project.tasks.{task_path}"
            return fields

        executed = zip(fields("job.executed"), ("append_line", "line_in_slot", "line_in_slot"), strict=True)
        assert [outcome(*each) for each in executed] == [
            {"job_id": job_id, "status": "success"} for job_id in (ok, first, second)
        ]
        (failed,) = fields("job.failed")
        assert outcome(failed, "fail") == {
            "job_id": bad,
            "exception_class": "builtins.ValueError",
            "message": "it failed",
        }
        assert fields("job.unblocked") == [{"job_id": second, "concurrency_key": "slot:k"}]
        (replaced,) = fields("process.replaced")
        assert replaced == {"kind": "worker", "old_pid": worker, "new_pid": replaced["new_pid"]}
        assert fields("process.pruned") == [{"process_name": "worker-9", "pid": 999_999}]

    @pytest.mark.django_db(transaction=True)
    def test_of_an_enqueue(self, caplog):
        caplog.set_level(logging.INFO, "dj_queue")
        result = tasks.add.using(queue_name="email", priority=7).enqueue(1, 2)
        (record,) = [record for record in caplog.records if record.name == "dj_queue"]
        assert (record.getMessage(), record.event, record.levelno) == ("job.enqueued", "job.enqueued", logging.INFO)
        assert record.dj_queue == {
            "job_id": result.id,
            "task_path": "tests.project.tasks.add",
            "queue_name": "email",
            "priority": 7,
        }


class TestSilence:
    SETTINGS = """
DEBUG = True
LOGGING["handlers"]["sql"] = {{"class": "logging.FileHandler", "filename": {path!r}}}
LOGGING["loggers"]["django.db.backends"] = {{"handlers": ["sql"], "level": "DEBUG", "propagate": False}}
"""

    def sql_of_idle_runners(self, runtime, project, tmp_path, mode, silence):
        path = tmp_path / "sql"
        running = runtime(
            options={
                "mode": mode,
                "silence_polling": silence,
                "process_heartbeat_interval": 0.2,
                "workers": {"polling_interval": 0.05},
                "dispatchers": {"polling_interval": 0.1},
                "scheduler": {"polling_interval": 0.1},
            },
            environment=project(settings=self.SETTINGS.format(path=str(path))),
            rows=2,
        )
        (job_id,) = enqueue((tasks.leave_run, "one"))
        wait_until(lambda: Job.objects.finished().filter(pk=job_id).exists())
        before = len(lines(path))
        beats = set()
        row = Process.objects.filter(name="worker-1")
        wait_until(lambda: len(beats.add(row.get().last_heartbeat_at) or beats) > 4)
        sql = lines(path)
        assert running.stop() == 0
        return sql, sql[before:]

    @pytest.mark.parametrize("mode", ["fork", "async"])
    def test_idle_runners_log_no_sql(self, runtime, project, tmp_path, mode):
        everything, idle = self.sql_of_idle_runners(runtime, project, tmp_path, mode, silence=True)
        assert [line for line in idle if "dj_queue" in line] == []
        # The application's own statements are none of our business.
        assert any("project_run" in line for line in everything)

    def test_unless_they_are_asked_to(self, runtime, project, tmp_path):
        _, idle = self.sql_of_idle_runners(runtime, project, tmp_path, "fork", silence=False)
        assert any("dj_queue_ready_executions" in line for line in idle)

    @pytest.mark.django_db(transaction=True)
    def test_the_application_still_sees_its_own_enqueues(self, caplog):
        caplog.set_level(logging.DEBUG, "django.db.backends")
        with override_settings(DEBUG=True):
            tasks.add.enqueue(1, 2)
        assert any("dj_queue_jobs" in record.getMessage() for record in caplog.records)


class TestPool:
    def test_a_driver_that_fails_between_two_jobs_costs_neither_the_thread_nor_the_job(self, monkeypatch):
        def fail(self):
            raise RuntimeError("the pool of the driver is closed")

        def run(job):
            assert connections["default"]  # the thread has one from now on
            ran.append(job)

        monkeypatch.setattr(BaseDatabaseWrapper, "close_if_unusable_or_obsolete", fail)
        errors, ran = [], []
        pool = Pool(1, run=run, may_start=lambda job: True, on_done=lambda: None, on_error=errors.append, name="worker")
        jobs = [execution.Job(mock.sentinel.claim, 0.0) for _ in range(3)]
        for job in jobs:
            pool.submit(job)
        done = []
        wait_until(lambda: done.extend(pool.collect()) or len(done) == 3)
        pool.close()
        assert ran == done == jobs
        assert [str(error) for error in errors] == ["the pool of the driver is closed"] * 5
