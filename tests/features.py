"""What databases differ in, as `@pytest.mark.needs("...")` names it. Asking opens no connection."""

from collections.abc import Callable

from django.db import connection

from dj_queue.dialects import dialect_for
from tests import databases

# Feature: whether the database under test has it, and what is said of a test that is skipped.
FEATURES: dict[str, tuple[Callable[[], bool], str]] = {
    "one statement": (
        lambda: dialect_for("default").one_statement,
        "the database needs several statements for a step",
    ),
    "several statements": (
        lambda: not dialect_for("default").one_statement and databases.SERVER,
        "a step is one statement, or costs no round trip",
    ),
    "plans": (
        lambda: databases.SERVER,
        "the database has no plans that this understands",
    ),
    "executed plans": (
        lambda: (
            dialect_for("default").one_statement
            and connection.features.supports_explaining_query_execution
            and "JSON" in connection.features.supported_explain_formats
        ),
        "the database does not say in JSON what a statement has read",
    ),
    "any bytes for text": (
        lambda: connection.vendor == "postgresql",
        "the database stores no text that it cannot send",
    ),
    "vacuum": (
        lambda: connection.vendor == "postgresql",
        "the database has no vacuum that an operator looks after",
    ),
    "NUL in JSON": (
        lambda: dialect_for("default").json_limits.nul,
        "the database refuses NUL characters in JSON",
    ),
    "refusal of NUL": (
        lambda: not dialect_for("default").json_limits.nul,
        "the database stores NUL characters in JSON",
    ),
    "skipped locks": (
        lambda: connection.features.has_select_for_update_skip_locked,
        "the database has one writer at a time: runtimes take turns, whatever they do",
    ),
    "sessions": (
        lambda: databases.SERVER,
        "the database has no server whose sessions could be ended",
    ),
    "a clock of its own": (
        lambda: databases.SERVER,
        "the database's clock is this machine's",
    ),
    "one writer": (
        lambda: not connection.features.has_select_for_update,
        "the database locks rows, and no writer waits for all others",
    ),
    "row locks": (
        lambda: connection.features.has_select_for_update,
        "the database has one writer at a time: no such race",
    ),
    "statement timeout": (
        lambda: databases.VENDOR in ("postgres", "mariadb"),
        "the database limits no statement that writes",
    ),
    "wide integers": (
        lambda: dialect_for("default").json_limits.wide_integers,
        "the database rounds integers of more than 64 bits",
    ),
    "sessions without a time zone": (
        lambda: databases.SERVER and not connection.features.supports_timezones,
        "the database converts times by itself, or has no sessions",
    ),
    "largest statement": (
        lambda: hasattr(dialect_for("default"), "_known_server"),
        "the database bounds no statement",
    ),
    "ascending indexes": (
        lambda: hasattr(dialect_for("default"), "_known_server"),
        "every version of the database has descending indexes",
    ),
    "error numbers": (
        lambda: connection.vendor == "mysql",
        "the database does not number its errors",
    ),
    "accounts with a limit": (
        lambda: connection.vendor == "mysql",
        "the database limits the connections of a database and a role, not of an account",
    ),
    "a mode of transactions": (
        lambda: hasattr(connection, "transaction_modes"),
        "a transaction locks what it touches, as it touches it",
    ),
    "locks on tables": (
        lambda: databases.VENDOR == "postgres",
        "a transaction locks no table as a whole, or what reads does not wait for it",
    ),
    "prepared statements": (
        lambda: databases.VENDOR == "postgres",
        "the driver prepares nothing, or planning costs nothing there",
    ),
    "isolation levels": (
        lambda: hasattr(connection, "isolation_levels"),
        "the project cannot ask for an isolation level that the queue does not want",
    ),
}


def missing(feature: str) -> str | None:
    """Why a test that needs the feature is skipped; None if it is not."""
    there, reason = FEATURES[feature]
    return None if there() else f"needs {feature}: {reason}"
