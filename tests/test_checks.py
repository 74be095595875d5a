"""System checks: each says what is wrong and what to do, and keeps quiet otherwise."""

from importlib import metadata
from pathlib import PurePosixPath

import pytest
from django.conf import settings
from django.core import checks as django_checks
from django.db import router
from django.test import override_settings

from dj_queue import checks, config
from dj_queue.config import BACKEND_PATH
from dj_queue.models import Job
from dj_queue.routers import DjQueueRouter

FOREIGN = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("DJ_QUEUE_CONFIG", "DJ_QUEUE_MODE", "DJ_QUEUE_SKIP_RECURRING"):
        monkeypatch.delenv(name, raising=False)
    config.reset()
    yield
    config.reset()


@pytest.fixture
def database(monkeypatch):
    """Adds a database to the settings. Nothing connects to it."""

    def add(name="elsewhere", **parameters):
        given = {"ENGINE": "django.db.backends.dummy", "NAME": "q", **parameters}
        monkeypatch.setitem(settings.DATABASES, name, given)

    return add


@pytest.fixture
def routers(monkeypatch):
    return lambda *found: monkeypatch.setitem(router.__dict__, "routers", list(found))


def tasks(*aliases, **options):
    entry = {"BACKEND": BACKEND_PATH, "OPTIONS": options}
    return override_settings(TASKS=dict.fromkeys(aliases or ("default",), entry))


def ids(messages):
    return [message.id for message in messages]


def test_all_checks_are_registered_under_a_tag():
    assert checks.TAG in django_checks.registry.registry.tags_available()
    with tasks(mode="x"):
        assert "dj_queue.E001" in ids(django_checks.run_checks(tags=[checks.TAG]))
    ours = {check for check in vars(checks) if check.startswith("check_")}
    registered = {
        check.__name__ for check in django_checks.registry.registry.registered_checks if checks.TAG in check.tags
    }
    assert registered == ours


# Configuration


def test_a_right_configuration_is_quiet():
    with tasks("default", "mail", mode="async"):
        assert checks.check_configuration() == []


def test_each_broken_alias_is_one_error_with_all_its_mistakes():
    broken = {"BACKEND": BACKEND_PATH, "OPTIONS": {"mode": "x", "nope": 1}}
    right = {"BACKEND": BACKEND_PATH}
    with override_settings(TASKS={"default": right, "a": broken, "b": broken, "c": FOREIGN}):
        first, second = checks.check_configuration()
    assert ids([first, second]) == ["dj_queue.E001"] * 2
    assert first.level == django_checks.ERROR
    assert 'TASKS["a"]["OPTIONS"]["mode"]' in first.msg
    assert 'TASKS["a"]["OPTIONS"]["nope"]' in first.msg
    assert "'a'" in first.hint
    assert 'TASKS["b"]' in second.msg


def test_an_alias_of_another_backend_is_not_ours_to_judge():
    with override_settings(TASKS={"default": {**FOREIGN, "OPTIONS": {"mode": "x"}}}):
        assert checks.check_configuration() == []


def test_the_environment_counts(monkeypatch):
    monkeypatch.setenv("DJ_QUEUE_MODE", "x")
    with tasks():
        (error,) = checks.check_configuration()
    assert "DJ_QUEUE_MODE" in error.msg


# Router


def test_no_router_is_needed_on_the_default_database(routers):
    routers()
    with tasks():
        assert checks.check_router() == []


@pytest.mark.parametrize("others", [(), (object(),)])
def test_a_missing_router_is_an_error(others, database, routers):
    database()
    routers(*others)
    with tasks(database_alias="elsewhere"):
        (error,) = checks.check_router()
    assert (error.id, error.level) == ("dj_queue.E002", django_checks.ERROR)
    assert "'elsewhere'" in error.msg
    assert '"dj_queue.routers.DjQueueRouter"' in error.hint


def test_the_error_comes_in_a_broken_configuration_too(database, routers):
    database()
    routers()
    with tasks(database_alias="elsewhere", mode="x"):
        assert ids(checks.check_router()) == ["dj_queue.E002"]


class Subclass(DjQueueRouter):
    pass


@pytest.mark.parametrize("ours", [DjQueueRouter(), Subclass()])
def test_our_router_or_one_made_from_it_is_enough(ours, database, routers):
    database()
    routers(object(), ours)
    with tasks(database_alias="elsewhere"):
        assert checks.check_router() == []
        assert router.db_for_write(Job) == "elsewhere"


class Replicas:
    def db_for_read(self, model, **hints):
        return "replica"


def test_another_router_before_ours_is_a_warning(database, routers):
    database()
    routers(Replicas(), DjQueueRouter())
    with tasks(database_alias="elsewhere"):
        (warning,) = checks.check_router()
    assert (warning.id, warning.level) == ("dj_queue.W002", django_checks.WARNING)
    assert "to 'replica'" in warning.msg
    assert "'elsewhere'" in warning.msg
    routers(DjQueueRouter(), Replicas())
    with tasks(database_alias="elsewhere"):
        assert checks.check_router() == []


# Distributions


class Installed:
    version = "0.6.0"

    def __init__(self, files):
        self.files = None if files is None else [PurePosixPath(file) for file in files]


@pytest.fixture
def installed(monkeypatch):
    def install(files):
        def distribution(name):
            assert name == "dj-queue"
            return Installed(files)

        monkeypatch.setattr(metadata, "distribution", distribution)

    return install


@pytest.mark.parametrize("files", [["dj_queue/__init__.py", "dj_queue-0.6.0.dist-info/RECORD"], None])
def test_the_predecessor_beside_core_is_an_error(files, installed):
    installed(files)
    (error,) = checks.check_distributions()
    assert (error.id, error.level) == ("dj_queue.E003", django_checks.ERROR)
    assert "dj-queue 0.6.0" in error.msg
    assert "pip uninstall dj-queue`" in error.hint
    assert "--force-reinstall --no-deps dj-queue-core" in error.hint


@pytest.mark.parametrize("files", [[], ["dj_queue-1.0.dist-info/RECORD", "dj_queue_admin/x.py"]])
def test_a_distribution_without_our_files_is_fine(files, installed):
    installed(files)
    assert checks.check_distributions() == []


def test_no_predecessor_is_fine(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert checks.check_distributions() == []


# SQLite

SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/data/queue.sqlite3"}
WAL = "PRAGMA journal_mode=WAL"
IMMEDIATE = {"transaction_mode": "IMMEDIATE"}


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "without WAL and immediate transactions:"),
        ({"init_command": WAL}, "without immediate transactions:"),
        ({"init_command": WAL, "transaction_mode": None}, "without immediate transactions:"),
        ({"init_command": WAL, "transaction_mode": "DEFERRED"}, "without immediate transactions:"),
        ({"init_command": WAL, "transaction_mode": "EXCLUSIVE"}, "without immediate transactions:"),
        (IMMEDIATE, "without WAL:"),
        ({**IMMEDIATE, "init_command": None}, "without WAL:"),
        ({**IMMEDIATE, "init_command": "PRAGMA journal_mode=DELETE; SELECT 'wal'"}, "without WAL:"),
        ({**IMMEDIATE, "init_command": "PRAGMA wal_autocheckpoint=1"}, "without WAL:"),
    ],
)
def test_sqlite_without_its_settings_is_a_warning(options, missing, database):
    database(**SQLITE, OPTIONS=options)
    with tasks(database_alias="elsewhere"):
        (warning,) = checks.check_sqlite()
    assert (warning.id, warning.level) == ("dj_queue.W001", django_checks.WARNING)
    assert missing in warning.msg
    assert "'elsewhere'" in warning.msg
    assert 'DATABASES["elsewhere"]["OPTIONS"]' in warning.hint


@pytest.mark.parametrize(
    "init_command",
    [
        WAL,
        "PRAGMA foreign_keys=ON; pragma Journal_Mode = 'wal';",
        "PRAGMA main.journal_mode(WAL)",
    ],
)
@pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate"])
def test_sqlite_with_its_settings_is_quiet(init_command, mode, database):
    database(**SQLITE, OPTIONS={"init_command": init_command, "transaction_mode": mode})
    with tasks(database_alias="elsewhere"):
        assert checks.check_sqlite() == []


def test_the_settings_of_the_hint_satisfy_the_check(database):
    database(**SQLITE)
    with tasks(database_alias="elsewhere"):
        (warning,) = checks.check_sqlite()
        options = eval(warning.hint.partition(" to ")[2].replace(", ...}.", "}"))
        database(**SQLITE, OPTIONS=options)
        assert checks.check_sqlite() == []


@pytest.mark.parametrize("name", [":memory:", "file::memory:?cache=shared", "file:q?mode=memory"])
def test_sqlite_in_memory_is_quiet(name, database):
    database(**{**SQLITE, "NAME": name})
    with tasks(database_alias="elsewhere"):
        assert checks.check_sqlite() == []


def test_spatialite_is_sqlite(database):
    database(**{**SQLITE, "ENGINE": "django.contrib.gis.db.backends.spatialite"})
    with tasks(database_alias="elsewhere"):
        assert ids(checks.check_sqlite()) == ["dj_queue.W001"]


def test_other_engines_and_other_databases_are_quiet(database):
    database()
    database("unused", **SQLITE)
    with tasks(database_alias="elsewhere"):
        assert checks.check_sqlite() == []
