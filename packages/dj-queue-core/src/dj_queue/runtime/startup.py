"""What must hold before any process starts."""

import time
from collections.abc import Callable

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, NotSupportedError, connections

from dj_queue.config import BackendConfig
from dj_queue.exceptions import DjQueueError
from dj_queue.operations.schema import refusal, unapplied_migrations

_PAUSE = 0.5


class NotReadyError(DjQueueError):
    """The database cannot be used yet; the message ends with what to do."""


def await_schema(config: BackendConfig, *, seconds: float, say: Callable[[str], object]) -> None:
    """Wait for the database to answer and for its migrations to be applied, at most `seconds`.

    Raises `NotReadyError`, at once for a server that no waiting would change.
    """
    database = config.database_alias
    deadline = time.monotonic() + seconds
    said = False
    try:
        while (obstacle := _obstacle(database)) is not None:
            if time.monotonic() >= deadline:
                raise NotReadyError(obstacle)
            if not said:
                say(f"{obstacle} Waiting up to {seconds:g} seconds.")
                said = True
            time.sleep(min(_PAUSE, seconds))
    finally:
        connections[database].close()


def _obstacle(database: str) -> str | None:
    try:
        reason = refusal(database)
        if reason is not None:
            raise NotReadyError(f"The database {database!r} cannot hold a queue: {reason}.")
        missing = unapplied_migrations(database)
    except (ImproperlyConfigured, NotSupportedError) as error:  # Django's own: of a driver, or of an old server
        raise NotReadyError(f"The database {database!r} cannot hold a queue: {error}") from error
    except Error as error:
        lines = str(error).strip().splitlines()
        return f"The database {database!r} does not answer ({lines[0] if lines else type(error).__name__})."
    if missing:
        return (
            f"The database {database!r} lacks the migration {', '.join(missing)} of dj_queue."
            f" Run: manage.py migrate dj_queue --database {database}"
        )
    return None
