"""Sends the queue's tables to the database that holds them."""

from typing import Any

from django.db import router
from django.db.models import Model

from dj_queue.config import migrated_aliases, usual_database
from dj_queue.dialects import has_schemas

_APP = "dj_queue"


class DjQueueRouter:
    """Required where a queue lives on another database than `default`; harmless elsewhere.

    With exactly one queue database, every query of the app goes there. With several, code has to
    say which one it means (`using()`), as dj-queue's own code always does.
    """

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        return _database(model, hints)

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        return _database(model, hints)

    def allow_relation(self, first: Model, second: Model, **hints: Any) -> bool | None:
        ours = [each for each in (first, second) if each._meta.app_label == _APP]
        if len(ours) != 1:
            return True if ours else None
        theirs = second if ours[0] is first else first
        # Not where the row says: Django has already put a new one where its job is.
        home = router.db_for_write(type(theirs))
        if home != (ours[0]._state.db or usual_database()):
            return False
        return True if theirs._state.db in (None, home) else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        if app_label != _APP:
            return None
        if db not in migrated_aliases():
            return False
        # Where each tenant has a schema, the router that knows them says which of them has tables.
        return None if has_schemas(db) else True


def _database(model: type[Model], hints: dict[str, Any]) -> str | None:
    if model._meta.app_label != _APP:
        return None
    instance = hints.get("instance")
    if instance is not None and instance._state.db:
        return str(instance._state.db)
    # Several queue databases: prefer the one of the alias "default", as the promised API does.
    return usual_database()
