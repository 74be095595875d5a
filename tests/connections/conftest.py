"""Other ways to the database under test, other databases, and a pooler before one."""

import copy
import inspect
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import override_settings

from dj_queue import config
from dj_queue.config import BACKEND_PATH

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def task_alias(**options: Any) -> dict[str, Any]:
    """An entry of `TASKS`."""
    return {"BACKEND": BACKEND_PATH, "QUEUES": [], "OPTIONS": options}


def plain(name: str) -> dict[str, Any]:
    """An alias's settings, as a settings file has them."""
    settings = connections.settings[name] | {"TEST": {}}
    assert eval(repr(settings)) == settings
    return settings


@pytest.fixture
def alias(transactional_db: None) -> Iterator[Callable[..., dict[str, Any]]]:
    """Add an alias: `alias("pooled", HOST=...)` is the test's database, but for what is given."""
    added: list[str] = []
    # Django keeps a test from every alias but those that it knew beforehand.
    case = inspect.getclosurevars(BaseDatabaseWrapper.ensure_connection).nonlocals["cls"]
    allowed = case.databases

    def add(name: str, **changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {**copy.deepcopy(connection.settings_dict), **changes}
        settings["OPTIONS"] = {**connection.settings_dict["OPTIONS"], **changes.get("OPTIONS", {})}
        connections.settings[name] = settings
        added.append(name)
        case.databases = {*case.databases, name}
        config.reset()
        return settings

    yield add
    for name in added:
        with suppress(AttributeError, ImproperlyConfigured):
            connections[name].close()
            if connections[name].settings_dict["OPTIONS"].get("pool"):
                connections[name].close_pool()
            del connections[name]
        del connections.settings[name]
    case.databases = allowed
    config.reset()


@pytest.fixture
def second(alias: Callable[..., dict[str, Any]], request: Any) -> Iterator[str]:
    """A second database with the queue's tables alone, as the alias "queue"; a parameter adds to its TEST."""
    name = f"{connection.settings_dict['NAME']}_queue"
    alias("queue", NAME=name, TEST={**connection.settings_dict["TEST"], "NAME": name, **getattr(request, "param", {})})
    with override_settings(TASKS={"default": task_alias(database_alias="queue")}):
        creation = connections["queue"].creation
        creation._create_test_db(verbosity=0, autoclobber=True)
        connections["queue"].close()
        call_command("migrate", "dj_queue", database="queue", verbosity=0)
    yield "queue"
    for each in connections.all(initialized_only=True):
        if each.settings_dict["NAME"] == name:
            each.close()
    creation._destroy_test_db(name, verbosity=0)


@pytest.fixture
def forbidden(monkeypatch: Any) -> Iterator[set[str]]:
    """Names of aliases that nobody may use, in any thread. Who does gets an error, and so does the test."""
    names: set[str] = set()
    touched: list[str] = []

    def guarded(name: str) -> None:
        real = getattr(BaseDatabaseWrapper, name)

        def method(self: BaseDatabaseWrapper, *args: Any, **kwargs: Any) -> Any:
            if self.alias in names:
                touched.append(f"{name} on {self.alias!r}")
                raise AssertionError(touched[-1])
            return real(self, *args, **kwargs)

        monkeypatch.setattr(BaseDatabaseWrapper, name, method)

    # Every statement comes through the first; a connection or a transaction alone through the second.
    guarded("_cursor")
    guarded("ensure_connection")
    yield names
    names.clear()
    assert touched == []


class PgBouncer:
    """A real pooler before the server of the database under test."""

    def __init__(self, mode: str, size: int) -> None:
        server = connection.settings_dict
        self.folder = Path(tempfile.mkdtemp(prefix="dj-queue-pool-"))
        # It refuses to run as root, and must be able to reach the server's socket.
        owner = Path(server["HOST"]).owner() if str(server["HOST"]).startswith("/") else "nobody"
        password = f" password={server['PASSWORD']}" if server["PASSWORD"] else ""
        (self.folder / "pgbouncer.ini").write_text(
            f"""
[databases]
* = host={server["HOST"] or "127.0.0.1"} port={server["PORT"] or 5432} user={server["USER"]}{password}
[pgbouncer]
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
auth_type = any
unix_socket_dir = {self.folder}
listen_port = 6432
logfile = {self.folder}/log
pidfile = {self.folder}/pid
"""
        )
        as_owner = []
        if os.geteuid() == 0:
            os.chown(self.folder, pwd.getpwnam(owner).pw_uid, pwd.getpwnam(owner).pw_gid)
            as_owner = ["-u", owner]
        assert PGBOUNCER
        self._process = subprocess.Popen([PGBOUNCER, "-q", *as_owner, str(self.folder / "pgbouncer.ini")])

    @property
    def settings(self) -> dict[str, Any]:
        return {"HOST": str(self.folder), "PORT": "6432", "DISABLE_SERVER_SIDE_CURSORS": True}

    @property
    def ready(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        return (self.folder / ".s.PGSQL.6432").exists()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def pooler(transactional_db: None) -> Iterator[Callable[..., PgBouncer]]:
    """Start a pooler: `pooler("transaction", size=1)`."""
    from tests.conftest import wait_until

    if not os.environ.get("DJ_QUEUE_TEST_POSTGRES"):
        pytest.skip("the database under test is none that PgBouncer could stand before")
    if PGBOUNCER is None:
        pytest.skip("there is no pgbouncer here")
    started: list[PgBouncer] = []

    def start(mode: str = "transaction", *, size: int = 2) -> PgBouncer:
        started.append(PgBouncer(mode, size))
        wait_until(lambda: started[-1].ready, what="the pooler's socket")
        return started[-1]

    yield start
    for running in started:
        running.stop()
