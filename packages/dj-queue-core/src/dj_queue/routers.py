"""Sends the queue's tables to the database that holds them."""

from typing import Any

from django.db.models import Model

from dj_queue.config import migrated_aliases, usual_database

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
        ours = {first._meta.app_label == _APP, second._meta.app_label == _APP}
        if ours == {True}:
            return True
        return False if True in ours else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return db in migrated_aliases() if app_label == _APP else None


def _database(model: type[Model], hints: dict[str, Any]) -> str | None:
    if model._meta.app_label != _APP:
        return None
    instance = hints.get("instance")
    if instance is not None and instance._state.db:
        return str(instance._state.db)
    # Several queue databases: prefer the one of the alias "default", as the promised API does.
    return usual_database()
