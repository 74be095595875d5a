"""Several aliases, on one database or several, beside other backends: each has its own everything."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.tasks import task_backends

from dj_queue import config
from dj_queue.api import QueueInfo, schedule_recurring_task
from dj_queue.config import backend_config, managed_aliases
from dj_queue.models import Job, Process, RecurringTask
from dj_queue.operations import recurring
from dj_queue.routers import DjQueueRouter
from tests.conftest import lines, wait_until
from tests.connections.conftest import plain, task_alias
from tests.project import tasks
from tests.working import states, work

ROOT = Path(__file__).parents[2]
FOREIGN = {"BACKEND": "django.tasks.backends.dummy.DummyBackend", "OPTIONS": {"mode": "x"}}


def recurring_option(schedule="0 3 * * *"):
    return {"daily": {"task_path": "tests.project.tasks.add", "schedule": schedule, "args": [1, 2]}}


class TestOnOneDatabase:
    @pytest.fixture(autouse=True)
    def two(self, transactional_db, settings):
        settings.TASKS = {
            "default": task_alias(recurring=recurring_option()),
            "mail": task_alias(recurring=recurring_option("0 4 * * *"), preserve_finished_jobs=False),
            "external": FOREIGN,
        }

    def test_jobs_and_results(self):
        ours, theirs = tasks.add.enqueue(1, 2), tasks.add.using(backend="mail").enqueue(3, 4)
        assert [job.return_value for job in Job.objects.all()] == [None, None]
        assert len(work(alias="mail")) == 1
        assert states() == {"ready": 1}  # mail keeps no finished jobs
        assert len(work(alias="mail")) == 0
        for backend, result in (("mail", ours), ("default", theirs)):
            with pytest.raises(Exception, match=result.id):
                task_backends[backend].get_result(result.id)
        assert len(work()) == 1

    def test_pauses_and_what_is_cleared(self):
        tasks.add.enqueue(1, 2)
        tasks.add.using(backend="mail").enqueue(3, 4)
        QueueInfo("default", backend_alias="mail").pause()
        assert not QueueInfo("default").paused
        assert work(alias="mail") == []
        assert len(work()) == 1
        assert QueueInfo("default").clear() == 0
        assert QueueInfo("default", backend_alias="mail").clear() == 1

    def test_recurring_tasks(self):
        for alias in ("default", "mail"):
            recurring.tasks(backend_config(alias))
        schedule_recurring_task(
            key="more", task_path="tests.project.tasks.add", schedule="0 5 * * *", backend_alias="mail"
        )
        recurring.tasks(backend_config("default"))
        rows = RecurringTask.objects.values_list("backend_alias", "key", "schedule")
        assert sorted(rows) == [
            ("default", "daily", "0 3 * * *"),
            ("mail", "daily", "0 4 * * *"),
            ("mail", "more", "0 5 * * *"),
        ]

    def test_semaphores_are_shared(self):
        """A limit protects what all aliases use."""
        tasks.one_per_key.enqueue("k")
        tasks.one_per_key.using(backend="mail").enqueue("k")
        assert states() == {"ready": 1, "blocked": 1}
        assert work(alias="mail") == []
        assert len(work()) == 1
        assert len(work(alias="mail")) == 1

    def test_failed_jobs_and_retention(self):
        for alias in ("default", "mail"):
            tasks.fail.using(backend=alias).enqueue()
            work(alias=alias)
        call_command("dj_queue_prune", backend="mail", failed_older_than=0)
        assert list(Job.objects.values_list("backend_alias", flat=True)) == ["default"]

    @pytest.mark.parametrize("command", ["dj_queue", "dj_queue_health", "dj_queue_prune"])
    def test_commands_leave_other_backends_alone(self, command):
        with pytest.raises(CommandError, match=r"is not dj-queue's\. The aliases dj-queue manages: 'default', 'mail'"):
            call_command(command, backend="external")
        assert managed_aliases() == ("default", "mail")

    def test_a_limit_of_one_alias_is_its_own_mistake(self, settings):
        settings.TASKS = {"default": task_alias(), "broken": task_alias(mode="x"), "external": FOREIGN}
        assert tasks.add.enqueue(1, 2).status == "READY"
        assert DjQueueRouter().db_for_write(Job) == "default"
        with pytest.raises(CommandError, match="cannot use the configuration of 'broken'"):
            call_command("dj_queue", backend="broken")


def around(settings, *databases):
    text = "".join(f"DATABASES[{name!r}] = {plain(name)!r}\n" for name in databases)
    return f"{text}TASKS = {settings.TASKS!r}\n"


def processes(alias):
    rows = Process.objects.using(backend_config(alias).database_alias).filter(backend_alias=alias)
    return Counter(rows.values_list("kind", flat=True))


class TestRuntimes:
    def test_two_of_one_database(self, transactional_db, runtime, project, settings, tmp_path):
        settings.TASKS = {
            "default": task_alias(workers={"threads": 1}, recurring=recurring_option()),
            "mail": task_alias(workers={"threads": 2, "processes": 2}, dispatchers=[], mode="fork"),
            "external": FOREIGN,
        }
        environment = project(settings=around(settings))
        first = runtime(environment=environment, rows=3)
        second = runtime("--backend", "mail", "--skip-recurring", environment=environment, rows=2)
        assert processes("default") == {"Supervisor": 1, "Worker": 1, "Dispatcher": 1, "Scheduler": 1}
        assert processes("mail") == {"Supervisor": 1, "Worker": 2}
        QueueInfo("default").pause()
        ran = tmp_path / "ran"
        for n in range(10):
            tasks.append_line.enqueue(str(ran), f"default {n}")
            tasks.append_line.using(backend="mail").enqueue(str(ran), f"mail {n}")
        wait_until(lambda: len(lines(ran)) == 10)
        assert sorted(lines(ran)) == [f"mail {n}" for n in range(10)]
        assert second.stop() == 0
        assert processes("mail") == {}
        assert processes("default") == {"Supervisor": 1, "Worker": 1, "Dispatcher": 1, "Scheduler": 1}
        QueueInfo("default").resume()
        wait_until(lambda: len(lines(ran)) == 20)
        assert first.stop() == 0
        assert states() == {"finished": 20}

    def test_two_of_two_databases(self, second, runtime, project, settings, tmp_path):
        settings.TASKS = {
            "default": task_alias(workers={"threads": 1}),
            "apart": task_alias(database_alias=second, workers={"threads": 1}, recurring=recurring_option()),
        }
        environment = project(settings=around(settings, second))
        # The rows of the second are looked for where they are.
        first = runtime(environment=environment, rows=3)
        other = runtime("--backend", "apart", environment=environment, rows=None)
        wait_until(lambda: processes("apart") == {"Supervisor": 1, "Worker": 1, "Dispatcher": 1, "Scheduler": 1})
        ran = tmp_path / "ran"
        for n in range(10):
            tasks.append_line.enqueue(str(ran), f"default {n}")
            tasks.append_line.using(backend="apart").enqueue(str(ran), f"apart {n}")
        wait_until(lambda: len(lines(ran)) == 20)
        assert (Job.objects.using("default").count(), Job.objects.using(second).count()) == (10, 10)
        assert set(Process.objects.using(second).values_list("backend_alias", flat=True)) == {"apart"}
        wait_until(lambda: RecurringTask.objects.using(second).exists())
        assert not RecurringTask.objects.using("default").exists()
        assert other.stop() == 0
        assert first.stop() == 0
        connections[second].close()


UNSET = {"unset": "del TASKS\n", "empty": "TASKS = {}\n"}


@pytest.mark.parametrize("how", UNSET)
def test_without_tasks_there_is_the_alias_default(transactional_db, runtime, project, how, tmp_path):
    """As far as dj-queue goes. `@task` is Django's, and asks TASKS: where that is empty it finds no backend."""
    running = runtime(environment=project(settings=UNSET[how]), rows=3)
    assert processes("default") == {"Supervisor": 1, "Worker": 1, "Dispatcher": 1, "Scheduler": 1}
    if how == "unset":
        tasks.add.enqueue(1, 2)
        wait_until(lambda: Job.objects.finished().count() == 1)
    assert running.stop() == 0


@pytest.mark.parametrize("tasks_setting", [{}, {"other": FOREIGN}])
def test_without_an_alias_of_ours_the_router_works(settings, tasks_setting):
    settings.TASKS = tasks_setting
    router = DjQueueRouter()
    if tasks_setting:
        assert (managed_aliases(), config.database_aliases()) == ((), frozenset())
        assert router.db_for_read(Job) is None
        assert router.allow_migrate("default", "dj_queue") is False
    else:
        assert (managed_aliases(), config.database_aliases()) == (("default",), {"default"})
        assert router.db_for_read(Job) == "default"
        assert router.allow_migrate("default", "dj_queue") is True


def test_a_router_alone_needs_no_models():
    """It answers while apps are still loading."""
    code = (
        "from django.conf import settings; settings.configure(INSTALLED_APPS=[]);"
        " from dj_queue.routers import DjQueueRouter; print(DjQueueRouter().allow_migrate('default', 'dj_queue'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=30
    )
    assert done.stdout.strip() == "True"
