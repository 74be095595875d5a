"""Rows that the database refuses, as a trigger of an operator's refuses them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from django.db import connection

WORDS = "the operator refuses it"


@contextmanager
def refusing(table: str, job_ids: Iterable[object], *, when: str = "INSERT") -> Iterator[None]:
    """Inside, no row of these jobs gets into (or, with DELETE, out of) the table of executions."""
    name = f"refuses_{table}"
    table = f"dj_queue_{table}_executions"
    row = "OLD" if when == "DELETE" else "NEW"
    ids = ", ".join(f"'{str(job_id).replace('-', '')}'" for job_id in job_ids)
    refused = f"replace(CAST({row}.job_id AS CHAR(36)), '-', '') IN ({ids})"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {refused} THEN"
                f" RAISE EXCEPTION '{WORDS}'; END IF; RETURN {row}; END $$"
            )
            cursor.execute(f"CREATE TRIGGER {name} BEFORE {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
        elif connection.vendor == "sqlite":
            cursor.execute(
                f"CREATE TRIGGER {name} BEFORE {when} ON {table} WHEN {refused} BEGIN"
                f" SELECT RAISE(ABORT, '{WORDS}'); END"
            )
        else:
            cursor.execute(
                f"CREATE TRIGGER {name} BEFORE {when} ON {table} FOR EACH ROW IF {refused} THEN"
                f" SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{WORDS}'; END IF"
            )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute(f"DROP FUNCTION {name}() CASCADE")
            else:
                cursor.execute(f"DROP TRIGGER {name}")
