"""How a database reads its tables for the queue's statements: one reader for each kind of server."""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from django.db import connection, transaction

QUEUES = ["a", "a1", "a2", "b", "c", "default", "email", "z"]
MILLION = 1_000_000
TABLES = ["jobs", "ready_executions", "scheduled_executions", "claimed_executions", "failed_executions"]


class Plan(NamedTuple):
    sql: str
    sequential: list[str]  # the queue's tables that are read whole
    sorts: list[Any]  # what is sorted, if there is anything to sort
    scans: int  # how many nodes read the queue's tables, and did
    rows_read: float  # how many rows of the queue's tables it looked at
    lines: list[str]

    def __repr__(self) -> str:
        return "\n".join([f"rows read: {self.rows_read}", *self.lines, self.sql])


class PostgreSQL:
    many = MILLION
    overhead = 1

    # Job n has the id of number n: as with real ids, later jobs come later in the index.
    _ID = "('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
    _QUEUE = "(%(queues)s::text[])[1 + n %% %(count)s]"
    _FILL = f"""
INSERT INTO dj_queue_jobs (id, task_path, queue_name, priority, payload, backend_alias)
SELECT {_ID}, 'tests.project.tasks.add', {_QUEUE}, n %% 5 - 2, '{{"args": [1, 2], "kwargs": {{}}}}', 'default'
FROM generate_series(1, %(last)s + %(scheduled)s) n;
INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority)
SELECT {_ID}, 'default', {_QUEUE}, n %% 5 - 2 FROM generate_series(1, %(last)s) n;
INSERT INTO dj_queue_scheduled_executions (job_id, backend_alias, queue_name, priority, scheduled_at)
SELECT {_ID}, 'default', {_QUEUE}, n %% 5 - 2, statement_timestamp() + make_interval(mins => n %% 100 - 50)
FROM generate_series(%(last)s + 1, %(last)s + %(scheduled)s) n"""

    @property
    def unknown(self) -> str | None:
        known = connection.features.supported_explain_formats
        return None if "JSON" in known else "the server does not show its plans as JSON"

    def empty(self, cursor: Any) -> None:
        cursor.execute("TRUNCATE dj_queue_jobs, dj_queue_ready_executions, dj_queue_claimed_executions CASCADE")

    def fill(self, cursor: Any, last: int, scheduled: int) -> None:
        given = {"queues": QUEUES, "count": len(QUEUES)}
        cursor.execute(self._FILL, {**given, "last": last, "scheduled": scheduled})

    def analyze(self, cursor: Any) -> None:
        cursor.execute("ANALYZE")

    def keep_statistics(self, cursor: Any, kept: bool) -> None:
        """Whether statistics stay as they are until they are asked for."""
        change = "SET (autovacuum_enabled = off)" if kept else "RESET (autovacuum_enabled)"
        for table in TABLES:
            cursor.execute(f"ALTER TABLE dj_queue_{table} {change}")

    def plans(self, step: Callable[[], Any]) -> list[Plan]:
        """The plan of every statement that a step runs on the queue's tables. Changes nothing."""
        ran: list[tuple[str, Any]] = []

        def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            assert not many
            if "dj_queue_" in sql:
                ran.append((sql, params))
            return execute(sql, params, many, context)

        with transaction.atomic():
            with connection.execute_wrapper(note):
                step()
            transaction.set_rollback(True)
        found = []
        for sql, params in [(each, params) for text, params in ran for each in text.split(";\n")]:
            with transaction.atomic(), connection.cursor() as cursor:
                # With ANALYZE, which runs it: a branch that the plan has and never takes costs nothing.
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params)
                (answer,) = cursor.fetchone()
                tree = json.loads(answer) if isinstance(answer, str) else answer
                found.append(self._plan(sql, list(_nodes(tree[0]["Plan"]))))
                transaction.set_rollback(True)
        assert found, "the step ran no statement"
        return found

    def explained(self, step: Callable[[], Any]) -> list[Plan]:
        """The plan of every statement of a step that reads only, as it is planned where it runs."""
        found: list[Plan] = []

        def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if "dj_queue_" in sql:
                execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", params, many, context)
                (answer,) = context["cursor"].cursor.fetchone()
                tree = json.loads(answer) if isinstance(answer, str) else answer
                found.append(self._plan(sql, list(_nodes(tree[0]["Plan"]))))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(explain):
            step()
        return found

    def _plan(self, sql: str, nodes: list[dict[str, Any]]) -> Plan:
        return Plan(
            sql,
            [each["Relation Name"] for each in nodes if each["Node Type"] == "Seq Scan"],
            [
                each["Sort Key"]
                for each in nodes
                if "Sort" in each["Node Type"] and each["Actual Loops"] * each["Actual Rows"] > 0
            ],
            sum("Scan" in each["Node Type"] and "Relation Name" in each and each["Actual Loops"] > 0 for each in nodes),
            sum(
                each["Actual Loops"]
                * (
                    each["Actual Rows"]
                    + each.get("Rows Removed by Filter", 0)
                    + each.get("Rows Removed by Index Recheck", 0)
                )
                for each in nodes
                if "Scan" in each["Node Type"] and "Relation Name" in each
            ),
            [
                f"{each['Node Type']} {each.get('Relation Name', '')} {each.get('Index Name', '')}"
                f" rows={each['Actual Rows']} loops={each['Actual Loops']} {each.get('Index Cond', '')}"
                for each in nodes
            ],
        )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


class MySQL:
    """Explains each statement just before it runs, and counts what its run reads."""

    unknown = None
    overhead = 4  # it also counts the rows that the statement brings along, and those that it puts aside
    # Filling takes several times as long as on PostgreSQL.
    many = MILLION if os.environ.get("DJ_QUEUE_TEST_LONG") else 100_000

    _ID = "CONCAT('0190000000007000800', LPAD(HEX(n), 13, '0'))"
    _QUEUE = f"ELT(1 + n %% {len(QUEUES)}, {', '.join(map(repr, QUEUES))})"
    _NUMBERS = "WITH RECURSIVE numbers AS (SELECT %s AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < %s)"

    def empty(self, cursor: Any) -> None:
        cursor.execute("SET foreign_key_checks = 0")
        for table in TABLES:
            cursor.execute(f"TRUNCATE dj_queue_{table}")
        cursor.execute("SET foreign_key_checks = 1")

    def fill(self, cursor: Any, last: int, scheduled: int) -> None:
        depth = "max_recursive_iterations" if connection.mysql_is_mariadb else "cte_max_recursion_depth"
        cursor.execute(f"SET SESSION {depth} = 4294967295")
        cursor.execute(
            "INSERT INTO dj_queue_jobs (id, task_path, queue_name, priority, payload, backend_alias)"
            f" {self._NUMBERS} SELECT {self._ID}, 'tests.project.tasks.add', {self._QUEUE}, n %% 5 - 2,"
            """ '{"args": [1, 2], "kwargs": {}}', 'default' FROM numbers""",
            [1, last + scheduled],
        )
        cursor.execute(
            "INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority)"
            f" {self._NUMBERS} SELECT {self._ID}, 'default', {self._QUEUE}, n %% 5 - 2 FROM numbers",
            [1, last],
        )
        cursor.execute(
            "INSERT INTO dj_queue_scheduled_executions (job_id, backend_alias, queue_name, priority, scheduled_at)"
            f" {self._NUMBERS} SELECT {self._ID}, 'default', {self._QUEUE}, n %% 5 - 2,"
            " UTC_TIMESTAMP(6) + INTERVAL (n %% 100 - 50) MINUTE FROM numbers",
            [last + 1, last + scheduled],
        )

    def analyze(self, cursor: Any) -> None:
        cursor.execute(f"ANALYZE TABLE {', '.join(f'dj_queue_{table}' for table in TABLES)}")
        cursor.fetchall()

    def keep_statistics(self, cursor: Any, kept: bool) -> None:
        """Whether statistics stay as they are until they are asked for."""
        for table in TABLES:
            cursor.execute(f"ALTER TABLE dj_queue_{table} STATS_AUTO_RECALC = {0 if kept else 'DEFAULT'}")

    def plans(self, step: Callable[[], Any]) -> list[Plan]:
        """The plan of every statement that a step runs on the queue's tables. Changes nothing."""
        found: list[Plan] = []

        def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            assert not many
            if "dj_queue_" not in sql or "information_schema" in sql:
                return execute(sql, params, many, context)
            with connection.connection.cursor() as aside:
                explain = "EXPLAIN" if connection.mysql_is_mariadb else "EXPLAIN FORMAT=TRADITIONAL"
                aside.execute(f"{explain} {sql}", params)
                names = [column[0] for column in aside.description]
                lines = [dict(zip(names, row, strict=True)) for row in aside.fetchall()]
                before = _rows_read(aside)
                value = execute(sql, params, many, context)
                # Reading the counters is counted too.
                read = _rows_read(aside) - before
                aside.execute("SELECT 1")
                before = _rows_read(aside)
                found.append(self._plan(sql, lines, read - (_rows_read(aside) - before)))
            return value

        with transaction.atomic():
            with connection.execute_wrapper(note):
                step()
            transaction.set_rollback(True)
        assert found, "the step ran no statement"
        return found

    def _plan(self, sql: str, lines: list[dict[str, Any]], rows_read: int) -> Plan:
        # Not the target of an INSERT, nor what the statement itself brings along.
        tables = [
            line
            for line in lines
            if line["select_type"] != "INSERT" and line["table"] and line["table"] not in ("done", "changed")
            and not line["table"].startswith("<")
        ]  # fmt: skip
        return Plan(
            sql,
            [line["table"] for line in tables if line["type"] in ("ALL", "index")],
            [line["table"] for line in lines if "filesort" in (line["Extra"] or "")],
            0,
            rows_read,
            [str(line) for line in lines],
        )


def _rows_read(cursor: Any) -> int:
    cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
    return sum(int(value) for _, value in cursor.fetchall())


@cache
def reader() -> Any:
    """The reader of the database under test; None if there is none."""
    kind = {"postgresql": PostgreSQL, "mysql": MySQL}.get(connection.vendor)
    return kind() if kind else None
