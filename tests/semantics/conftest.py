"""Two aliases on one database."""

from collections.abc import Callable
from typing import Any

import pytest

BACKEND = "dj_queue.backend.DjQueueBackend"


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Set the options of the alias `default`, and add an alias `other` beside it."""

    def set_options(other: dict[str, Any] | None = None, **options: Any) -> None:
        settings.TASKS = {
            alias: {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": given}
            for alias, given in (("default", options), ("other", other or {}))
        }

    return set_options


@pytest.fixture
def two_aliases(configure: Callable[..., None]) -> None:
    configure()
