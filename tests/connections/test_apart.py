"""A queue on a database of its own: nothing of dj-queue touches another one, and only it has the tables."""

from datetime import timedelta
from io import StringIO

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import ProgrammingError, connection, connections, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.utils import OperationalError
from django.tasks import default_task_backend
from django.utils import timezone

from dj_queue import api
from dj_queue.config import backend_config
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Process,
    ReadyExecution,
    RecurringTask,
    ScheduledExecution,
)
from dj_queue.operations import jobs, maintenance, processes, recovery, recurring
from dj_queue.runtime.dispatcher import Dispatcher
from dj_queue.runtime.scheduler import Scheduler
from dj_queue.runtime.supervisor import AsyncSupervisor
from tests.conftest import lines, wait_until
from tests.connections.conftest import plain, task_alias
from tests.project import tasks
from tests.working import states, work

TICK = {"task_path": "tests.project.tasks.add", "schedule": "* * * * * *", "args": [1, 2]}


@pytest.fixture
def apart(second, settings, forbidden):
    """The queue is on the second database; whoever touches the default one fails, and so does the test."""
    options = {"recurring": {"tick": TICK}, "scheduler": {"dynamic_tasks_enabled": True, "polling_interval": 0.1}}
    settings.TASKS = {"default": task_alias(database_alias=second, **options)}
    forbidden.add("default")
    return second


class TestTouchesNothingElse:
    def test_backend(self, apart):
        results = default_task_backend.enqueue_all(
            [
                (tasks.add, [1, 2], {}),
                (tasks.fail, [], {}),
                (tasks.one_per_key, ["k"], {}),
                (tasks.one_per_key, ["k"], {}),
            ]
        )
        later = tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
        assert states() == {"ready": 3, "blocked": 1, "scheduled": 1}
        assert len(work()) == 3
        for result in (*results, later):
            result.refresh()
        assert [result.status for result in results] == ["SUCCESSFUL", "FAILED", "SUCCESSFUL", "READY"]

        async def asynchronous():
            result = await tasks.add.aenqueue(1, 2)
            await result.arefresh()
            return result.status

        # In this thread, whose connection the test's is.
        assert async_to_sync(asynchronous)() == "READY"

    def test_api(self, apart):
        queue = api.QueueInfo("default")
        queue.pause()
        with transaction.atomic(using=apart):
            api.enqueue_on_commit(tasks.add, 1, 2, using=apart)
        assert (queue.size, queue.paused, queue.latency >= 0) == (1, True, True)
        assert [each.queue_name for each in api.QueueInfo.all()] == ["default"]
        queue.resume()
        assert queue.clear() == 1
        failed = [tasks.fail.enqueue() for _ in range(3)]
        work()
        api.retry_failed_job(failed[0].id)
        assert api.discard_failed_job(failed[1].id) == 1
        assert api.discard_failed_jobs() == 1
        api.schedule_recurring_task(key="dynamic", task_path="tests.project.tasks.add", schedule="0 3 * * *")
        assert api.unschedule_recurring_task("dynamic") == 1

    def test_operations_and_models(self, apart):
        config = backend_config()
        tasks.fail.enqueue()
        work()
        (failed,) = FailedExecution.objects.all()
        failed.retry()
        work()
        FailedExecution.retry_all(FailedExecution.objects.all())
        (job,) = jobs.claim_ready_jobs(limit=1)
        assert jobs.execute_claimed_job(job.id).status == "failed"
        FailedExecution.objects.get().discard()
        for model in (ReadyExecution, ScheduledExecution, BlockedExecution, FailedExecution):
            assert model.discard_all_in_batches() == 0
        done = tasks.add.enqueue(1, 2)
        work()
        jobs.enqueue_job_again(done.id)
        assert Job.objects.ready().count() == Job.objects.finished().count() == 1
        process = processes.register(config, kind="Worker", name="w", pid=1, hostname="", metadata={})
        jobs.claim_ready_jobs(limit=1, process=Process.objects.get(pk=process))
        Process.objects.update(last_heartbeat_at=timezone.now() - timedelta(hours=1))
        assert recovery.prune(config) == 1
        jobs.enqueue_job_again(done.id)
        jobs.claim_ready_jobs(limit=1)
        recovery.settle_missing(config)
        assert states() == {"finished": 1, "failed": 2}
        assert not ClaimedExecution.objects.exists()
        tasks.one_per_key.enqueue("k")
        tasks.one_per_key.enqueue("k")
        assert sum(maintenance.maintain(config)) == 0

    def test_dispatcher_scheduler_and_retention(self, apart):
        config = backend_config()
        tasks.add.using(run_after=timezone.now() + timedelta(seconds=0.1)).enqueue(1, 2)
        dispatcher = Dispatcher(config, config.dispatchers[0], "dispatcher-1")
        wait_until(lambda: (dispatcher.step(), Job.objects.ready().exists())[1])
        scheduler = Scheduler(config, config.scheduler, "scheduler-1")
        wait_until(lambda: (scheduler.step(), Job.objects.ready().count() > 1)[1])
        assert len(recurring.tasks(config)) == 1
        dispatcher.wakeup.close()
        scheduler.wakeup.close()

    def test_commands(self, apart):
        tasks.add.enqueue(1, 2)
        tasks.fail.enqueue()
        work()
        call_command("dj_queue_prune", older_than=0, failed_older_than=0, recurring_older_than=0)
        assert states() == {}
        with pytest.raises(CommandError, match="no process of 'default'"):
            call_command("dj_queue_health")
        call_command("check", "--tag", "dj_queue", databases=[apart])

    def test_a_runtime_of_threads_in_this_process(self, apart):
        supervisor = AsyncSupervisor.from_backend_config(standalone=False)
        supervisor.start()
        try:
            result = tasks.add.enqueue(1, 2)

            def finished():
                supervisor.poll_once()
                result.refresh()
                return result.is_finished

            wait_until(finished)
        finally:
            supervisor.stop()
        assert not Process.objects.exists()

    @pytest.mark.parametrize("mode", ["fork", "async"])
    def test_a_runtime(self, apart, forbidden, runtime, project, settings, tmp_path, mode):
        guard = GUARD.format(path=str(tmp_path / "touched"))
        around = f"DATABASES['queue'] = {plain('queue')!r}\nTASKS = {settings.TASKS!r}\n"
        forbidden.clear()  # the fixtures of a runtime tell it of the default database
        running = runtime("--mode", mode, environment=project(guard, settings=around), rows=3)
        forbidden.add("default")
        ran = tmp_path / "ran"
        for n in range(20):
            tasks.append_line.enqueue(str(ran), f"{n}")
        tasks.fail.enqueue()
        tasks.append_line.using(run_after=timezone.now() + timedelta(seconds=0.2)).enqueue(str(ran), "scheduled")
        wait_until(lambda: len(lines(ran)) == 21, what=running.output)
        wait_until(lambda: RecurringTask.objects.get().key == "tick" and Job.objects.finished().count() > 22)
        assert running.stop() == 0
        assert lines(tmp_path / "touched") == ["watching"]

    def test_the_guard_guards(self, second, settings, forbidden, tmp_path, runtime, project):
        """Or all of the above would prove nothing."""
        settings.TASKS = {"default": task_alias(database_alias="default")}
        guard = GUARD.format(path=str(tmp_path / "touched"))
        running = runtime("--wait", "0", environment=project(guard), rows=None)
        running.wait()
        assert "default" in lines(tmp_path / "touched")


# Installed in every process of a runtime, before it begins.
GUARD = """
from django.db.backends.base.base import BaseDatabaseWrapper

def tell(what):
    with open({path!r}, "a") as file:
        file.write(what + "\\n")

def guarded(name):
    real = getattr(BaseDatabaseWrapper, name)

    def method(self, *args, **kwargs):
        if self.alias == "default":
            tell("default")
            raise AssertionError("a query on the default database")
        return real(self, *args, **kwargs)

    setattr(BaseDatabaseWrapper, name, method)

guarded("_cursor")
guarded("ensure_connection")
tell("watching")
"""


class TestMigrations:
    def test_land_only_where_a_queue_lives(self, second, settings):
        settings.TASKS = {"default": task_alias(database_alias=second)}
        tables = set(connections[second].introspection.table_names())
        assert {table for table in tables if not table.startswith("dj_queue_")} == {"django_migrations"}
        assert len(tables) == 12

    def test_what_migrate_on_the_default_database_does(self, second, settings, alias):
        """Django notes them as applied there, and makes no table. The runtime knows the difference."""
        settings.TASKS = {"default": task_alias(database_alias=second)}
        name = f"{connection.settings_dict['NAME']}_app"
        alias("app", NAME=name, TEST={**connection.settings_dict["TEST"], "NAME": name})
        creation = connections["app"].creation
        creation._create_test_db(verbosity=0, autoclobber=True)
        connections["app"].close()
        try:
            output = StringIO()
            call_command("migrate", database="app", stdout=output)
            assert "Applying dj_queue.0001_initial... OK" in output.getvalue()
            tables = connections["app"].introspection.table_names()
            assert "auth_user" in tables
            assert not [table for table in tables if table.startswith("dj_queue_")]
            # The queue moves there.
            settings.TASKS = {"default": task_alias(database_alias="app")}
            for command, options in COMMANDS.items():
                with pytest.raises(CommandError) as refusal:
                    call_command(command, **options)
                assert "'app' has the record of dj_queue's migrations, and not its tables" in str(refusal.value)
            advice = str(refusal.value).partition("Run: manage.py ")[2]
            for line in advice.split(" && manage.py "):
                call_command(*line.removeprefix("manage.py ").split(), verbosity=0)
            assert tasks.add.enqueue(1, 2).status == "READY"
        finally:
            connections["app"].close()
            creation._destroy_test_db(name, verbosity=0)

    def test_another_alias_of_the_same_database(self, second, settings, alias):
        """Through the one that listens, migrations are applied too: the note of them is shared."""
        alias("direct", NAME=plain(second)["NAME"])
        settings.TASKS = {"default": task_alias(database_alias=second, listen_database_alias="direct")}
        call_command("migrate", "dj_queue", "zero", database=second, verbosity=0)
        assert "dj_queue_jobs" not in connections["direct"].introspection.table_names()
        call_command("migrate", "dj_queue", database="direct", verbosity=0)
        assert "dj_queue_jobs" in connections["direct"].introspection.table_names()
        assert tasks.add.enqueue(1, 2).status == "READY"

    def test_that_were_not_run(self, second, settings):
        settings.TASKS = {"default": task_alias(database_alias=second)}
        call_command("migrate", "dj_queue", "zero", database=second, verbosity=0)
        for command, options in COMMANDS.items():
            with pytest.raises(CommandError, match=r"Run: manage\.py migrate dj_queue --database queue"):
                call_command(command, **options)
        with pytest.raises((ProgrammingError, OperationalError)) as refusal:
            tasks.add.enqueue(1, 2)
        assert refusal.value.__notes__ == [
            "dj-queue's tables are not there. Run: manage.py migrate dj_queue --database queue"
        ]
        assert "dj_queue" in {app for app, _ in MigrationRecorder(connection).applied_migrations()}


COMMANDS = {"dj_queue_health": {}, "dj_queue_prune": {}, "dj_queue": {"wait": 0}}


class TestTransactions:
    """Whether a job is stored with the caller's rows depends on whose transaction it is."""

    def test_on_the_queues_alias_an_enqueue_joins(self, second, settings):
        settings.TASKS = {"default": task_alias(database_alias=second)}
        with transaction.atomic(using=second):
            tasks.add.enqueue(1, 2)
            transaction.set_rollback(True, using=second)
        assert not Job.objects.exists()

    def test_on_another_it_does_not(self, second, settings):
        settings.TASKS = {"default": task_alias(database_alias=second)}
        with transaction.atomic():
            tasks.leave_run.enqueue("before the commit")
            tasks.leave_run.func("rolled back")
            transaction.set_rollback(True)
        assert Job.objects.count() == 1

    def test_on_commit_waits_for_the_one_it_is_told(self, second, settings):
        settings.TASKS = {"default": task_alias(database_alias=second)}
        with transaction.atomic():
            api.enqueue_on_commit(tasks.add, 1, 2)
            api.enqueue_on_commit(tasks.add, 3, 4, using=second)
            assert Job.objects.count() == 1
            transaction.set_rollback(True)
        assert Job.objects.count() == 1
