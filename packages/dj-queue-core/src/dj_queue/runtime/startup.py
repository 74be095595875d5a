"""What must hold before any process starts."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from django.db import Error, connections

from dj_queue.config import BackendConfig
from dj_queue.exceptions import DjQueueError
from dj_queue.operations import schema
from dj_queue.runtime import connection_budget

_PAUSE = 0.5


class NotReadyError(DjQueueError):
    """The database cannot be used yet; the message ends with what to do."""


def await_schema(config: BackendConfig, *, seconds: float, say: Callable[[str], object]) -> None:
    """Wait for the database to answer and for its migrations to be applied, at most `seconds`.

    Raises `NotReadyError`, and `ImproperlyConfigured` for what no waiting would mend.
    """
    database = config.database_alias
    schema.require_usable(database)
    deadline = time.monotonic() + seconds
    said = False
    try:
        while (obstacle := schema.obstacle(database)) is not None:
            if time.monotonic() >= deadline:
                raise NotReadyError(obstacle)
            if not said:
                say(f"{obstacle} Waiting up to {seconds:g} seconds.")
                said = True
            time.sleep(min(_PAUSE, seconds))
    finally:
        connections[database].close()


def shortages(config: BackendConfig) -> Iterator[connection_budget.Shortage]:
    """What may turn out too little once all threads are busy. Nothing to keep anybody from starting."""
    yield from connection_budget.pool_shortages(config)
    with suppress(Error):  # it has just answered: the next use of it will tell
        shortage = connection_budget.server_shortage([config])
        if shortage:
            yield shortage
    connections[config.database_alias].close()
