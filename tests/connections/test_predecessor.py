"""A queue's database that still has the tables of dj-queue 0.6: every door says so, and names upgrading.md."""

import sqlite3
import time

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError, SystemCheckError
from django.db import DatabaseError, connections

from dj_queue import checks
from dj_queue.dialects import sqlite
from dj_queue.models import Process
from dj_queue.operations import schema
from tests.connections.conftest import task_alias
from tests.project import tasks

COMMANDS = ["dj_queue", "dj_queue_health", "dj_queue_prune"]
SAID = "The database 'queue' still has the tables of dj-queue 0.6"


@pytest.fixture
def old(second, settings):
    """A database as 0.6 left it: the same tables, with fewer columns, and its migration recorded as applied."""
    settings.TASKS = {"default": task_alias(database_alias=second)}
    gone = {"dj_queue_jobs": ["started_at", "last_attempted_at", "worker_ids"]}
    with connections[second].cursor() as cursor:
        for table, columns in {**gone, "dj_queue_ready_executions": ["backend_alias"]}.items():
            for column in columns:
                cursor.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO {column}_not")
    return second


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_refuse_at_once(old, command):
    began = time.monotonic()
    with pytest.raises(CommandError) as refusal:
        call_command(command)
    assert time.monotonic() - began < 20  # `dj_queue` waits for what a migration would mend, and this is not that
    said = str(refusal.value)
    assert said.removeprefix("unhealthy: ").startswith(SAID)
    assert "docs/upgrading.md" in said
    assert said.endswith("manage.py migrate dj_queue zero --database queue")


def test_health_is_not_taken_in_by_the_old_runtime(old):
    """Which beats in a table that both versions have."""
    Process.objects.using(old).create(kind="Worker", name="worker-1", pid=1, hostname="h", backend_alias="default")
    with pytest.raises(CommandError, match="unhealthy: The database 'queue' still has"):
        call_command("dj_queue_health")


def test_the_check_tells(old):
    (error,) = checks.check_predecessor(databases=["default", old])
    assert (error.id, error.level) == ("dj_queue.E006", 40)
    assert error.msg.startswith(SAID)
    assert "docs/upgrading.md" in error.msg
    assert checks.check_predecessor(databases=["default"]) == []
    assert checks.check_predecessor() == []
    with pytest.raises(SystemCheckError, match=r"dj_queue\.E006"):
        call_command("check", databases=[old])


def test_migrating_says_it_before_it_does_nothing(old):
    with pytest.raises(SystemCheckError, match=r"upgrading\.md"):
        call_command("migrate", "dj_queue", database=old, skip_checks=False)


def test_what_is_enqueued_names_the_way_out(old):
    with pytest.raises(DatabaseError) as caught:
        tasks.add.enqueue(1, 2)
    (note,) = caught.value.__notes__
    assert "If dj-queue 0.6 made them, docs/upgrading.md says how to replace them" in note
    assert note.endswith("manage.py migrate dj_queue --database queue")


def test_the_embedded_runtime_does_not_wait(old):
    with pytest.raises(ImproperlyConfigured, match=r"upgrading\.md"):
        schema.obstacle(old)


def test_our_own_tables_are_not_taken_for_old_ones(second, settings):
    settings.TASKS = {"default": task_alias(database_alias=second)}
    assert schema.predecessor("default") is schema.predecessor(second) is None
    assert checks.check_predecessor(databases=["default", second]) == []
    call_command("migrate", "dj_queue", "zero", database=second, verbosity=0)
    assert schema.predecessor(second) is None
    call_command("migrate", "dj_queue", database=second, verbosity=0)


# ---- SQLite, of which Django accepts older ones ------------------------------------------------------


@pytest.fixture
def file(alias, settings, tmp_path):
    alias("queue", ENGINE="django.db.backends.sqlite3", NAME=str(tmp_path / "queue.sqlite3"), OPTIONS={})
    connections.settings["queue"]["OPTIONS"] = {}
    settings.TASKS = {"default": task_alias(database_alias="queue")}
    return tmp_path / "queue.sqlite3"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_old_sqlite_is_refused(file, monkeypatch, command):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    with pytest.raises(CommandError) as refusal:
        call_command(command)
    said = str(refusal.value)
    assert "DATABASES['queue'] cannot hold a queue: dj-queue needs SQLite 3.38.0 or later, and this Python has" in said
    assert "3.37.2. Use a Python with a newer one, or" in said
    (error,) = checks.check_databases()
    assert (error.id, error.msg) == ("dj_queue.E004", said)
    assert not file.exists()  # told without connecting


def test_the_oldest_that_will_do(file, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", sqlite._OLDEST)
    assert checks.check_databases() == []


def test_a_sqlite_without_json_is_refused(file, monkeypatch):
    monkeypatch.setattr(sqlite, "_ASK_JSON", "SELECT no_such_json('{}')")
    with pytest.raises(CommandError, match="built without its JSON functions"):
        call_command("dj_queue")
