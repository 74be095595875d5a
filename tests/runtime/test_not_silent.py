"""With Django's own logging and DEBUG off, what goes wrong is still one line that says what."""

import logging
import os
import subprocess
import sys

import pytest
from django.test import override_settings

from dj_queue import checks
from dj_queue.config import BACKEND_PATH
from tests.conftest import wait_settled
from tests.project import tasks
from tests.working import work

MODES = pytest.mark.parametrize("mode", ["fork", "async"])
FOREIGN = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}


@MODES
def test_a_failed_job_is_on_stderr(runtime, project, mode):
    environment = project(settings="\nLOGGING = {}\nDEBUG = False\n")
    running = runtime("--mode", mode, environment=environment, rows=1)
    good = tasks.add.enqueue(1, 2)
    failed = tasks.fail.enqueue("no such customer\nand more")
    wait_settled()
    assert running.stop() == 0
    said = f"dj_queue: the job {failed.id} of tests.project.tasks.fail failed: builtins.ValueError: no such customer"
    assert running.output.splitlines().count(said) == 1, running.output
    assert good.id not in running.output


@pytest.mark.django_db(transaction=True)
def test_it_is_said_once_in_either_way(caplog, monkeypatch):
    """At INFO by the event alone, for those who have set it up; in words where that is not logged."""
    logger = logging.getLogger("dj_queue")
    for level, expected in ((logging.INFO, "INFO"), (logging.WARNING, "ERROR")):
        monkeypatch.setattr(logger, "level", level)
        logger.manager._clear_cache()
        caplog.clear()
        tasks.fail.enqueue("no")
        work()
        assert [r.levelname for r in caplog.records if getattr(r, "event", "") == "job.failed"] == [expected]
    logger.manager._clear_cache()


def test_the_app_without_an_alias_is_a_warning():
    with override_settings(TASKS={"default": FOREIGN}):
        (warning,) = checks.check_aliases()
    assert warning.id == "dj_queue.W007"
    assert BACKEND_PATH in warning.hint
    with override_settings(TASKS={"default": FOREIGN, "queue": {"BACKEND": BACKEND_PATH}}):
        assert checks.check_aliases() == []


def test_without_tasks_there_is_an_alias():
    script = """
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["dj_queue"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()
from dj_queue.checks import check_aliases
assert check_aliases() == []
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
