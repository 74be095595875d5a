"""Whether a database can hold the queue, and its tables are as this version needs them."""

from importlib import import_module
from pkgutil import iter_modules

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, NotSupportedError, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from dj_queue.dialects import dialect_for
from dj_queue.models import Job

# Columns that the jobs of 0.6 do not have, and every later version has.
_SINCE_1_0 = frozenset({"started_at", "last_attempted_at", "worker_ids"})


def require_usable(database: str) -> None:
    """Refuse, without connecting, what no waiting would mend. Raises `ImproperlyConfigured`."""
    dialect = dialect_for(database)
    if refusal := dialect.unusable():
        raise ImproperlyConfigured(f"DATABASES[{database!r}] cannot hold a queue: {refusal}.")
    settings = connections[database].settings_dict
    unfit = dialect.unfit(settings)
    if not settings["AUTOCOMMIT"]:
        unfit = "AUTOCOMMIT off, so nobody would commit what the queue's own processes write"
    if unfit:
        raise ImproperlyConfigured(
            f"DATABASES[{database!r}] has {unfit}. Remove that, or give the queue an alias of its own without it,"
            " as the option database_alias."
        )


def obstacle(database: str) -> str | None:
    """What keeps the queue from using a database now, and the command to run; None if nothing does.

    Raises `ImproperlyConfigured` for a server that no waiting would mend.
    """
    try:
        refusal = dialect_for(database).refusal(connections[database])
        if refusal:
            raise ImproperlyConfigured(f"DATABASES[{database!r}] cannot hold a queue: {refusal}.")
        if old := predecessor(database):
            raise ImproperlyConfigured(old)
        missing = unapplied_migrations(database)
        tables = missing or _has_tables(database)
    except NotSupportedError as error:  # Django's own refusal of an old server
        raise ImproperlyConfigured(f"DATABASES[{database!r}] cannot hold a queue: {error}") from error
    except Error as error:
        reason = str(error).strip().splitlines()
        return f"The database {database!r} does not answer ({reason[0] if reason else type(error).__name__})."
    if missing:
        return (
            f"The database {database!r} lacks the migration {', '.join(missing)} of dj_queue."
            f" Run: manage.py migrate dj_queue --database {database}"
        )
    if not tables:
        # `migrate` also records what a router kept it from doing.
        return (
            f"The database {database!r} has the record of dj_queue's migrations, and not its tables: it was migrated"
            " while the queue lived elsewhere."
            f" Run: manage.py migrate dj_queue zero --fake --database {database}"
            f" && manage.py migrate dj_queue --database {database}"
        )
    return None


def predecessor(database: str) -> str | None:
    """Whether the tables are those of dj-queue 0.6, of the same names, and what to do; None if they are not.

    Raises what the database does if it does not answer.
    """
    connection = connections[database]
    with connection.cursor() as cursor:
        if Job._meta.db_table not in connection.introspection.table_names(cursor):
            return None
        columns = dialect_for(database).columns(cursor, Job._meta.db_table)
    if not columns.isdisjoint(_SINCE_1_0):
        return None
    return (
        f"The database {database!r} still has the tables of dj-queue 0.6, which this version cannot use and `migrate`"
        " leaves as they are. docs/upgrading.md says how to replace them, and what is lost: stop the queue, then drop"
        f" them with the old version installed: manage.py migrate dj_queue zero --database {database}"
    )


def unapplied_migrations(database: str) -> list[str]:
    """Return the names of dj-queue's migrations that the database lacks, in their order."""
    # Names are enough. Django's own way imports the migrations of every app, and a runtime would keep them.
    folder, _ = MigrationLoader.migrations_module("dj_queue")
    if folder is None:  # the project does without
        return []
    names = {name for _, name, is_package in iter_modules(import_module(folder).__path__) if not is_package}
    applied = {name for app, name in MigrationRecorder(connections[database]).applied_migrations() if app == "dj_queue"}
    return sorted(name for name in names - applied if name[0] not in "_~")


def _has_tables(database: str) -> bool:
    connection = connections[database]
    with connection.cursor() as cursor:
        return Job._meta.db_table in connection.introspection.table_names(cursor)
