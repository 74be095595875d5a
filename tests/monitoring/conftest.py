"""A client of `dj_queue.urls`, and a database that is down."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from dj_queue.config import BACKEND_PATH


@pytest.fixture
def web(settings: Any, transactional_db: None) -> Client:
    settings.ROOT_URLCONF = "tests.monitoring.urls"
    return Client()


@pytest.fixture
def aliases(settings: Any) -> Callable[..., None]:
    """Set TASKS: `aliases(mail={"database_alias": "queue"})`."""

    def set_tasks(**options: dict[str, Any]) -> None:
        settings.TASKS = {
            alias: {"BACKEND": BACKEND_PATH, "QUEUES": [], "OPTIONS": given} for alias, given in options.items()
        }

    return set_tasks


@pytest.fixture
def down(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The alias of a database that cannot be opened."""
    database: dict[str, Any] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "no folder" / "secret-name.sqlite3"),
    }
    monkeypatch.setitem(settings.DATABASES, "down", database)
    monkeypatch.setitem(connections.settings, "down", database)
    connections.configure_settings({"default": {}, "down": database})
    # Django's test case forbids databases that a test does not name, and names are checked before it runs.
    connection = connections["down"]

    def ensure_connection() -> None:
        with connection.wrap_database_errors:
            connection.connect()

    monkeypatch.setattr(connection, "ensure_connection", ensure_connection)
    yield "down"
    del connections["down"]
