"""Whether the server, and the queue's tables, are as this version needs them."""

from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from dj_queue.dialects import dialect_for


def unapplied_migrations(database: str) -> list[str]:
    """Return the names of dj-queue's migrations that the database lacks, in their order."""
    executor = MigrationExecutor(connections[database])
    targets = [key for key in executor.loader.graph.leaf_nodes() if key[0] == "dj_queue"]
    return [migration.name for migration, _ in executor.migration_plan(targets) if migration.app_label == "dj_queue"]


def refusal(database: str) -> str | None:
    """Why no queue can live on this server, and what to do; None where it can. Raises `ImproperlyConfigured`."""
    return dialect_for(database).refusal(connections[database])
