"""A database that cannot hold a queue: one message, with the command to run, before anything starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError

from dj_queue.checks import check_databases
from tests.connections.conftest import task_alias

ROOT = Path(__file__).parents[2]
COMMANDS = ["dj_queue", "dj_queue_health", "dj_queue_prune"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_vendor_there_is_no_dialect_for(alias, settings, command):
    alias("oracle", ENGINE="django.db.backends.dummy")
    settings.TASKS = {"default": task_alias(database_alias="oracle")}
    with pytest.raises(CommandError) as refusal:
        call_command(command)
    said = str(refusal.value)
    assert said.startswith("DATABASES['oracle'] is a unknown database, and dj-queue runs on PostgreSQL")
    assert said.endswith("Name one of those as the option database_alias.")
    (error,) = check_databases()
    assert (error.id, error.msg) == ("dj_queue.E004", said)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_engine_that_does_not_exist(alias, settings, command):
    alias("queue", ENGINE="django.db.backends.postgres")
    settings.TASKS = {"default": task_alias(database_alias="queue")}
    with pytest.raises(CommandError) as refusal:
        call_command(command)
    assert str(refusal.value).startswith("DATABASES['queue'] cannot be used: 'django.db.backends.postgres' isn't")
    assert str(refusal.value).endswith("Correct its ENGINE.")
    (error,) = check_databases()
    assert error.msg == str(refusal.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_alias_that_does_not_exist(settings, command):
    settings.TASKS = {"default": task_alias(database_alias="queue")}
    with pytest.raises(CommandError) as refusal:
        call_command(command)
    assert """TASKS["default"]["OPTIONS"]["database_alias"]: expected one of 'default', got 'queue'""" in str(
        refusal.value
    )


DRIVERS = {
    "django.db.backends.postgresql": ("psycopg psycopg2", 'pip install "dj-queue-core[postgres]"'),
    "django.db.backends.mysql": ("MySQLdb", "pip install mysqlclient"),
}


@pytest.mark.parametrize("engine", DRIVERS)
def test_a_driver_that_is_too_old(alias, settings, monkeypatch, engine):
    def load(name):
        raise ImproperlyConfigured("driver 2.2.1 or newer is required; you have 2.1.0.")

    alias("queue", ENGINE=engine)
    settings.TASKS = {"default": task_alias(database_alias="queue")}
    monkeypatch.setattr("django.db.utils.load_backend", load)
    (error,) = check_databases()
    said = "DATABASES['queue'] cannot be used: driver 2.2.1 or newer is required; you have 2.1.0."
    assert error.msg == f"{said} Run: {DRIVERS[engine][1].replace('install', 'install --upgrade')}"


@pytest.mark.parametrize(
    "arguments",
    [[*COMMANDS[:1], "--wait", "0"], COMMANDS[1:2], COMMANDS[2:], ["check", "--tag", "dj_queue"]],
    ids=" ".join,
)
@pytest.mark.parametrize("engine", DRIVERS)
def test_a_driver_that_is_not_installed(tmp_path, engine, arguments):
    modules, advice = DRIVERS[engine]
    (tmp_path / "bare.py").write_text(
        f"""
import sys
for name in {modules.split()!r}:
    sys.modules[name] = None  # as if it were not installed
SECRET_KEY = "x"
USE_TZ = True
INSTALLED_APPS = ["dj_queue"]
DATABASES = {{
    "default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    "queue": {{"ENGINE": {engine!r}, "NAME": "q"}},
}}
DATABASE_ROUTERS = ["dj_queue.routers.DjQueueRouter"]
TASKS = {{"default": {{"BACKEND": "dj_queue.backend.DjQueueBackend", "OPTIONS": {{"database_alias": "queue"}}}}}}
"""
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DJ_QUEUE_")}
    done = subprocess.run(
        [sys.executable, "-m", "django", *arguments],
        env={**environment, "DJANGO_SETTINGS_MODULE": "bare", "PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert re.search(
        rf"DATABASES\['queue'\] cannot be used: Error loading (psycopg2 or psycopg|MySQLdb) module."
        rf" Its driver is missing. Run: {re.escape(advice)}",
        done.stderr,
    )
