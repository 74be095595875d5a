"""A client of `dj_queue.urls`, and a database that is down."""

from collections.abc import Callable
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
def down(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The alias of a database that cannot be opened."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "no folder" / "secret-name.sqlite3")}
    monkeypatch.setitem(settings.DATABASES, "down", database)
    connections.settings["down"] = database
    connections.configure_settings({"down": database, "default": settings.DATABASES["default"]})
    yield "down"  # type: ignore[misc]
    connections.settings.pop("down")
    if hasattr(connections._connections, "down"):  # type: ignore[attr-defined]
        delattr(connections._connections, "down")  # type: ignore[attr-defined]
