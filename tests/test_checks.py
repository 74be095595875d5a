"""System checks: each says what is wrong and what to do, and keeps quiet otherwise."""

import os
import re
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from django.conf import settings
from django.core import checks as django_checks
from django.core.management import call_command
from django.db import OperationalError, connection, connections, router
from django.test import override_settings

from dj_queue import checks, config
from dj_queue.config import BACKEND_PATH
from dj_queue.dialects import dialect_for
from dj_queue.models import Job
from dj_queue.routers import DjQueueRouter
from dj_queue.runtime import connection_budget

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
        check.__name__
        for check in django_checks.registry.registry.registered_checks
        if checks.TAG in check.tags and check.__module__ == checks.__name__  # add-ons have checks of their own
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


def test_a_mistake_beside_the_database_is_told_and_not_raised(database, routers):
    database()
    routers(DjQueueRouter())
    with tasks(database_alias="elsewhere", mode="x"):
        assert checks.check_router() == []
        assert router.db_for_read(Job) == "elsewhere"
        assert ids(checks.check_configuration()) == ["dj_queue.E001"]


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


# Connections


@pytest.fixture
def only(monkeypatch, database):
    """These databases and no others."""

    def replace(**databases):
        for name in list(settings.DATABASES):
            monkeypatch.delitem(settings.DATABASES, name)
        for name, parameters in databases.items():
            database(name, **parameters)

    return replace


def pooled(**options):
    return {"OPTIONS": {"pool": options or True}}


@pytest.mark.parametrize(
    ("pool", "options", "need", "holds"),
    [
        pytest.param(pooled(), {"workers": {"threads": 5}}, 5, 4, id="what psycopg's default holds"),
        pytest.param(pooled(min_size=2, max_size=4), {"workers": {"threads": 5}}, 5, 4, id="a maximum"),
        pytest.param(pooled(max_size=9), {"workers": {"threads": 10}}, 10, 9, id="one too few"),
        pytest.param(
            pooled(max_size=5), {"mode": "async", "workers": [{}, {}]}, 6, 5, id="async: one pool for all workers"
        ),
        pytest.param(pooled(max_size=5), {"workers": [{}, {"threads": 9}]}, 9, 5, id="the largest worker counts"),
    ],
)
def test_a_pool_too_small_for_a_process_is_a_warning(pool, options, need, holds, only):
    only(default=pool)
    with tasks(**options):
        (warning,) = checks.check_pools()
    assert (warning.id, warning.level) == ("dj_queue.W004", django_checks.WARNING)
    assert warning.msg == (
        f"One process of 'default' may need {need} connections to the database 'default' at once, and its pool"
        f" holds {holds}: the others wait, and fail after the pool's timeout."
    )
    assert f'DATABASES["default"]["OPTIONS"]["pool"] to {{"max_size": {need}, ...}}' in warning.hint


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        pytest.param({}, {"workers": {"threads": 50}}, id="no pool"),
        pytest.param({"OPTIONS": {"pool": False}}, {"workers": {"threads": 50}}, id="no pool either"),
        pytest.param(pooled(min_size=1, max_size=3), {}, id="just enough: the runtime's own are beside it"),
        pytest.param(pooled(max_size=5), {"workers": {"processes": 9}}, id="each process has its own"),
        pytest.param(pooled(), {"mode": "x"}, id="a configuration that is wrong anyway"),
    ],
)
def test_a_pool_that_is_large_enough_is_quiet(pool, options, only):
    only(default=pool)
    with tasks(**options):
        assert checks.check_pools() == []


def test_a_pool_of_the_applications_own_database_serves_the_threads(only):
    only(default={}, app=pooled(min_size=1, max_size=3))
    with tasks():
        assert checks.check_pools() == []
    with tasks(workers={"threads": 4}):
        (warning,) = checks.check_pools()
    assert "may need 4 connections to the database 'app'" in warning.msg


@pytest.fixture
def allowing(monkeypatch):
    """The servers allow so many connections. Nobody asks them."""

    def allow(count):
        monkeypatch.setattr(connection_budget, "_limit", lambda database: count)

    return allow


def test_more_connections_than_the_server_allows_is_a_warning(only, allowing):
    only(default={"HOST": "db"}, replica={"HOST": "db"}, elsewhere={"HOST": "other"})
    # A supervisor, dispatcher and scheduler, and five processes of a runner and its threads.
    need = 1 + 2 + 2 + 5 * (2 + 2 * 10)
    with tasks(workers={"threads": 10, "processes": 5}):
        allowing(need)
        assert checks.check_connections(databases=["default"]) == []
        allowing(need - 1)
        assert checks.check_connections(databases=None) == []
        assert checks.check_connections(databases=["elsewhere"]) == []
        (warning,) = checks.check_connections(databases=["default"])
        allowing(None)
        assert checks.check_connections(databases=["default"]) == []
    assert (warning.id, warning.level) == ("dj_queue.W003", django_checks.WARNING)
    assert warning.msg == (
        "The processes of 'default' may open 115 connections to the server of the database 'default', which allows"
        " 114: 1 for each of 1 supervisors, 2 for each of 7 runners, and 1 for each of 50 threads and each database"
        " there ('default', 'replica')."
    )
    assert "`threads` or `processes`" in warning.hint


def test_aliases_on_one_server_count_together(only, allowing):
    only(default={"HOST": "db"})
    allowing(19)
    with tasks("default", "mail"):
        (warning,) = checks.check_connections(databases=["default"])
    assert "The processes of 'default' and 'mail' may open 20 connections" in warning.msg


@pytest.mark.parametrize(
    ("pool", "options", "need"),
    [
        # The runtime's own are not from the pool.
        pytest.param(pooled(), {}, 1 + (2 + 4) + 2 + 2, id="never less than its least"),
        pytest.param(
            pooled(min_size=0, max_size=6), {"workers": {"threads": 50}}, 1 + (2 + 6) + 2 + 2, id="never more"
        ),
        pytest.param(pooled(min_size=0, max_size=9), {"mode": "async", "workers": {"threads": 50}}, 7 + 9, id="async"),
    ],
)
def test_a_pool_bounds_what_a_process_opens(pool, options, need, only, allowing):
    only(default=pool)
    with tasks(**options):
        allowing(need)
        assert checks.check_connections(databases=["default"]) == []
        allowing(need - 1)
        (warning,) = checks.check_connections(databases=["default"])
    assert f"may open {need} connections" in warning.msg


def test_a_server_that_does_not_answer_is_not_this_checks_to_report(monkeypatch):
    def refuse(database):
        raise OperationalError("away")

    monkeypatch.setattr(connection_budget, "_limit", refuse)
    with tasks():
        assert checks.check_connections(databases=["default"]) == []


@pytest.mark.django_db
def test_the_command_asks_the_server_where_django_checks_databases(capsys):
    if not connection_budget._limit("default"):
        pytest.skip("the database sets no limit")
    with tasks(workers={"threads": 5000}):
        call_command("check")
        assert "W003" not in capsys.readouterr().err
        call_command("check", "--database", "default")
        assert "(dj_queue.W003) The processes of 'default' may open 5007 connections" in capsys.readouterr().err


@pytest.mark.django_db
def test_the_servers_limit_is_what_is_left_for_this_user():
    limit = connection_budget._limit("default")
    if limit is None:
        pytest.skip("the database sets no limit")
    with connection.cursor() as cursor:
        reserves = connection.vendor == "postgresql"
        cursor.execute("SHOW max_connections" if reserves else "SELECT @@max_connections")
        most = int(cursor.fetchone()[0])
    assert 0 < limit < most if reserves else 0 < limit <= most


@pytest.mark.django_db
@pytest.mark.needs("accounts with a limit")
def test_a_limit_of_the_account_counts():
    user = {"USER": f"dj_queue_{os.getpid()}", "PASSWORD": "a long Passw0rd", "NAME": ""}
    account = f"'{user['USER']}'@'%%'"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE USER {account} IDENTIFIED BY %s WITH MAX_USER_CONNECTIONS 7", [user["PASSWORD"]])
        limited = connections["default"].copy()
        limited.settings_dict.update(user)
        try:
            with limited.cursor() as own:
                assert dialect_for("default").connection_limit(own) == 7
        finally:
            limited.close()
            cursor.execute(f"DROP USER {account}", [])


# Tenants' schemas, and recurring tasks


class Schemas:
    """A connection whose engine gives each tenant a schema."""

    def set_schema(self, name: str) -> None: ...


@pytest.fixture
def tenants(monkeypatch):
    from django.db import connections

    monkeypatch.setattr(type(connections["default"]), "set_schema", Schemas.set_schema, raising=False)


@pytest.mark.parametrize(
    ("shared", "own", "said"),
    [
        (["dj_queue", "a"], ["b"], None),
        (["a"], ["dj_queue"], "in TENANT_APPS"),
        (["dj_queue"], ["dj_queue"], "in TENANT_APPS"),
        (["a"], ["b"], "in neither"),
    ],
)
def test_tenants_share_one_queue(tenants, settings, shared, own, said):
    from dj_queue.checks import check_tenants

    settings.SHARED_APPS, settings.TENANT_APPS = shared, own
    found = check_tenants()
    assert len(found) == (said is not None)
    for message in found:
        assert message.id == "dj_queue.W009"
        assert said in message.msg
        assert "SHARED_APPS" in message.hint


def test_the_router_leaves_schemas_to_the_one_that_knows_them(tenants):
    from dj_queue.routers import DjQueueRouter

    assert DjQueueRouter().allow_migrate("default", "dj_queue") is None
    assert DjQueueRouter().allow_migrate("elsewhere", "dj_queue") is False


def test_without_schemas_there_is_nothing_to_say(settings):
    from dj_queue.checks import check_tenants
    from dj_queue.routers import DjQueueRouter

    settings.TENANT_APPS = ["dj_queue"]
    assert check_tenants() == []
    assert DjQueueRouter().allow_migrate("default", "dj_queue") is True


def test_a_recurring_task_that_cannot_be_imported(settings):
    from dj_queue.checks import check_recurring_tasks

    tasks = {
        "good": {"task_path": "tests.project.tasks.add", "schedule": "0 3 * * *"},
        "lost": {"task_path": "gone.away.task", "schedule": "0 3 * * *"},
    }
    backend = "dj_queue.backend.DjQueueBackend"
    settings.TASKS = {"default": {"BACKEND": backend, "QUEUES": [], "OPTIONS": {"recurring": tasks}}}
    (message,) = check_recurring_tasks()
    assert message.id == "dj_queue.W008"
    assert "'lost'" in message.msg
    assert "gone.away.task" in message.msg


def test_each_check_has_an_id_of_its_own() -> None:
    source = Path(checks.__file__).read_text()
    listed = re.findall(r"^    (dj_queue\.[EW]\d{3})  ", source, re.MULTILINE)
    given = re.findall(r'id="(dj_queue\.[EW]\d{3})"', source)
    assert sorted(set(listed)) == sorted(listed)
    assert sorted(given) == sorted(listed)
