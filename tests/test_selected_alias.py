"""A YAML file without `backends:` counts for one alias: the one that the process selects."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from dj_queue import checks, config
from dj_queue.config import (
    BACKEND_PATH,
    Overrides,
    activate,
    backend_config,
    database_aliases,
    load_config,
    process_config,
    usual_database,
)
from dj_queue.runtime.embedded import embedded_config
from dj_queue.runtime.supervisor import AsyncSupervisor

OURS = {"BACKEND": BACKEND_PATH}
FOREIGN = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}


@pytest.fixture(autouse=True)
def flat(monkeypatch, tmp_path):
    """DJ_QUEUE_CONFIG names a file that is meant for one alias."""
    for name in ("DJ_QUEUE_MODE", "DJ_QUEUE_SKIP_RECURRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(settings.DATABASES, "elsewhere", {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"})
    file = tmp_path / "queue.yml"
    file.write_text("database_alias: elsewhere\n")
    monkeypatch.setenv("DJ_QUEUE_CONFIG", str(file))
    config.reset()
    yield str(file)
    config.reset()


def supervised(**given):
    """The configuration of a supervisor that code makes."""
    supervisor = AsyncSupervisor.from_backend_config(**given)
    supervisor._wakeup.close()
    return supervisor.config


def databases():
    return {alias: backend_config(alias).database_alias for alias in config.managed_aliases()}


def test_where_none_is_selected_it_is_the_default():
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        assert databases() == {"mail": "default", "default": "elsewhere"}
        assert database_aliases() == {"default", "elsewhere"}
        assert usual_database() == "elsewhere"


def test_the_router_agrees_before_anything_was_read():
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        assert database_aliases() == {"default", "elsewhere"}
        assert databases() == {"mail": "default", "default": "elsewhere"}


@pytest.mark.parametrize("others", [{}, {"default": FOREIGN}])
def test_or_the_only_one(others):
    with override_settings(TASKS={"mail": OURS, **others}):
        assert databases() == {"mail": "elsewhere"}
        assert database_aliases() == {"elsewhere"}


def test_or_none_of_several():
    with override_settings(TASKS={"mail": OURS, "reports": OURS, "default": FOREIGN}):
        assert databases() == {"mail": "default", "reports": "default"}


def test_the_command_selects_its_own():
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        activate(load_config("mail"))
        assert databases() == {"mail": "elsewhere", "default": "default"}
        assert database_aliases() == {"default", "elsewhere"}
        assert usual_database() == "default"


def test_what_code_asks_for_by_name_is_selected():
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        for alias in ("mail", "default"):
            assert load_config(alias).database_alias == "elsewhere"
            assert supervised(backend_alias=alias).database_alias == "elsewhere"


def test_an_embedded_supervisor_reads_what_its_process_reads():
    # Its host enqueues on the same alias, and so do the host's other processes, which embed nothing.
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        for alias in ("mail", "default"):
            assert embedded_config(alias) == replace(backend_config(alias), mode="async")


def test_the_checks_read_what_their_process_reads(flat):
    with open(flat, "w") as file:
        file.write("database_alias: elsewhere\nworkers: 3\n")
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        (error,) = checks.check_configuration()
        assert "cannot use the configuration of 'default'" in error.msg


def test_the_check_asks_for_a_file_that_names_its_aliases(flat):
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        (warning,) = checks.check_flat_file()
        assert warning.id == "dj_queue.W005"
        assert "DJ_QUEUE_CONFIG" in warning.msg
        assert "'default' alone" in warning.msg
        assert "backends:" in warning.hint
    with override_settings(TASKS={"mail": OURS, "reports": OURS}):
        assert "none of them" in checks.check_flat_file()[0].msg
    with override_settings(TASKS={"default": OURS}):
        assert checks.check_flat_file() == []
    with open(flat, "w") as file:
        file.write("backends: {mail: {database_alias: elsewhere}}")
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        assert checks.check_flat_file() == []
        assert databases() == {"mail": "elsewhere", "default": "default"}


@pytest.mark.parametrize("alias", ["mail", "default"])
@pytest.mark.parametrize("command", ["dj_queue_prune", "dj_queue_health"])
def test_each_command_reads_it_for_the_alias_it_was_given(flat, tmp_path, command, alias):
    # The alias's database is a file that is not there, so the command names where it went.
    script = f"""
import django
from django.conf import settings
sqlite = {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
settings.configure(
    DATABASES={{"default": sqlite, "elsewhere": sqlite}},
    DATABASE_ROUTERS=["dj_queue.routers.DjQueueRouter"],
    INSTALLED_APPS=["dj_queue"],
    USE_TZ=True,
    TASKS={{name: {{"BACKEND": "{BACKEND_PATH}"}} for name in ("mail", "default")}},
)
django.setup()
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "{command}", "--backend", "{alias}"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "DJ_QUEUE_CONFIG": flat},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "The database 'elsewhere' lacks the migration" in done.stderr, done.stderr


# ---- what code gives in place of a command line ------------------------------------------------------


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.delenv("DJ_QUEUE_CONFIG")


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({}, Overrides()),
        ({"mode": "async"}, Overrides(mode="async")),
        ({"only_work": True}, Overrides(only_work=True)),
        ({"only_dispatch": True, "only_work": False}, Overrides(only_dispatch=True)),
        ({"skip_recurring": True}, Overrides(skip_recurring=True)),
        # As the command's parser gives them where no flag was given.
        (
            {"mode": None, "config": None, "only_work": False, "only_dispatch": False, "skip_recurring": None},
            Overrides(),
        ),
    ],
)
def test_a_mapping_of_flags(unset, given, same):
    assert supervised(cli_overrides=given) == load_config(overrides=same)


def test_a_mapping_of_options_beats_every_source(unset, flat, monkeypatch):
    monkeypatch.setenv("DJ_QUEUE_MODE", "async")
    options = {"mode": "async", "shutdown_timeout": 1, "database_alias": "default", "clear_failed_jobs_after": 60}
    given = {
        "config": flat,
        "mode": "fork",
        "shutdown_timeout": 9,
        "workers": {"threads": 7},
        "clear_failed_jobs_after": None,
    }
    found = load_config(tasks={"default": {**OURS, "OPTIONS": options}}, overrides=given)
    assert (found.mode, found.shutdown_timeout, found.database_alias) == ("fork", 9, "elsewhere")
    assert ([worker.threads for worker in found.workers], found.clear_failed_jobs_after) == ([7], None)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"only_works": True}, """["only_works"]: expected a known option, got True; did you mean 'only_work'?"""),
        ({"worker": []}, """["worker"]: expected a known option, got []; did you mean 'workers'?"""),
        ({"mode": "x"}, """["mode"]: expected one of 'fork', 'async', got 'x'"""),
        ({"only_work": 1}, """["only_work"]: expected True or False, got 1"""),
        ({"skip_recurring": "no"}, """["skip_recurring"]: expected True or False, got 'no'"""),
        ({"config": 3}, """["config"]: expected the path of a YAML file, or None, got 3"""),
        ({1: 2}, "[1]: expected a known option, got 2; known here: "),
        ([], ": expected a mapping of options and flags, got []"),
        ({"workers": {"threads": 0}}, """["workers"]["threads"]: expected a whole number"""),
    ],
)
def test_mistakes_in_a_mapping(unset, given, line):
    with pytest.raises(ImproperlyConfigured) as caught:
        supervised(cli_overrides=given)
    assert f"\n  cli_overrides{line}" in str(caught.value)


def test_all_mistakes_of_a_mapping_come_with_the_others(unset):
    tasks = {"default": {**OURS, "OPTIONS": {"shutdown_timeout": -1}}}
    with pytest.raises(ImproperlyConfigured, match=r"\(3 mistakes\)"):
        load_config(tasks=tasks, overrides={"x": 1, "only_work": None, "workers": {"threads": 1}})


def test_a_process_reads_what_it_would_enqueue_with():
    with override_settings(TASKS={"mail": OURS, "default": OURS}):
        for alias in ("mail", "default"):
            assert process_config(alias) == backend_config(alias)
