"""Whether the queue's tables are as this version needs them."""

from importlib import import_module
from pkgutil import iter_modules

from django.db import connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder


def unapplied_migrations(database: str) -> list[str]:
    """Return the names of dj-queue's migrations that the database lacks, in their order."""
    # Names are enough. Django's own way imports the migrations of every app, and a runtime would keep them.
    folder, _ = MigrationLoader.migrations_module("dj_queue")
    if folder is None:  # the project does without
        return []
    names = {name for _, name, is_package in iter_modules(import_module(folder).__path__) if not is_package}
    applied = {name for app, name in MigrationRecorder(connections[database]).applied_migrations() if app == "dj_queue"}
    return sorted(name for name in names - applied if name[0] not in "_~")
