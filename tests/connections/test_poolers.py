"""PostgreSQL behind PgBouncer: what the runtime sets, it leaves on no session; it listens past the pooler, or polls."""

import logging
import time
from collections import Counter
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Job
from dj_queue.runtime.listener import Listener
from tests.conftest import lines, wait_settled, wait_until
from tests.connections.conftest import plain, task_alias
from tests.project import tasks
from tests.runtime.test_recovery import enqueue
from tests.working import claim, states, work

PINNED = ["enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan", "jit"]
SETTINGS = "SELECT pg_backend_pid(), " + ", ".join(f"current_setting('{name}')" for name in PINNED)


def ask(alias, sql):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


@pytest.fixture
def pooled(alias, pooler, settings):
    """The queue's alias leads through a pooler of one session, and `neighbour` through the same."""
    through = pooler("transaction", size=1).settings
    alias("pooled", **through)
    alias("neighbour", **through)
    settings.TASKS = {"default": task_alias(database_alias="pooled")}
    return "pooled"


class TestPlans:
    def test_are_pinned_for_each_statement_and_for_nobody_else(self, pooled):
        before = ask("neighbour", SETTINGS)
        assert before[1:4] == ("on", "on", "on")
        dialect_for(pooled).prepare_session(connections[pooled])
        assert ask(pooled, SETTINGS) == (before[0], "off", "off", "off", "off", "off")
        assert ask("neighbour", SETTINGS) == before
        with transaction.atomic(using=pooled):
            assert ask(pooled, "SELECT 1") == (1,)
            with transaction.atomic(using=pooled):
                assert ask(pooled, SETTINGS)[1:] == ("off",) * 5
        assert ask("neighbour", SETTINGS) == before

    def test_and_so_on_a_connection_opened_anew(self, pooled):
        for _ in range(2):
            dialect_for(pooled).prepare_session(connections[pooled])
            assert ask(pooled, SETTINGS)[1:] == ("off",) * 5
            connections[pooled].close()
        assert len(connections[pooled].execute_wrappers) == 1

    def test_a_direct_connection_is_pinned_as_a_whole(self, alias):
        alias("direct")
        dialect = dialect_for("direct")
        if not dialect.one_statement:
            pytest.skip("the database has no plans to pin")
        assert not dialect.is_pooled(connections["direct"])
        dialect.prepare_session(connections["direct"])
        assert ask("direct", SETTINGS)[1:] == ("off",) * 5
        assert connections["direct"].execute_wrappers == []

    def test_rows_come_back_from_the_statement_and_not_from_the_pins(self, pooled):
        dialect_for(pooled).prepare_session(connections[pooled])
        enqueue((tasks.add, 1, 2), (tasks.add, 3, 4), (tasks.fail,))
        assert len(claim(1)) == 1
        assert len(work()) == 2
        assert states() == {"claimed": 1, "finished": 1, "failed": 1}
        assert Job.objects.using(pooled).filter(finished_at=None).update(priority=5) == 2
        # The text of a named cursor is a part of another statement.
        connections[pooled].settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = False
        with transaction.atomic(using=pooled):
            assert len(list(Job.objects.using(pooled).iterator(chunk_size=1))) == 3

    def test_server_side_binding_leaves_them_to_the_statistics(self, alias, pooler, settings):
        alias("pooled", **pooler("transaction", size=1).settings, OPTIONS={"server_side_binding": True})
        settings.TASKS = {"default": task_alias(database_alias="pooled")}
        dialect_for("pooled").prepare_session(connections["pooled"])
        assert ask("pooled", SETTINGS)[1] == "on"
        enqueue((tasks.add, 1, 2))
        assert len(work()) == 1


class TestRuntime:
    def test_in_transaction_mode_it_polls_and_says_so(self, alias, pooler, runtime, project, settings, tmp_path):
        alias("pooled", **pooler("transaction", size=2).settings)
        options = {"workers": {"threads": 2, "processes": 2}, "dispatchers": {"polling_interval": 0.1}}
        settings.TASKS = {"default": task_alias(database_alias="pooled", **options)}
        around = f"DATABASES['pooled'] = {plain('pooled')!r}\nTASKS = {settings.TASKS!r}\n"
        ran = tmp_path / "ran"
        running = runtime(environment=project(settings=around), rows=4)
        enqueue(*((tasks.append_line, str(ran), f"{n}") for n in range(200)), (tasks.fail,))
        for key in "ababab":
            tasks.two_per_key.enqueue(key)
        due = timezone.now() + timedelta(seconds=0.3)
        tasks.append_line.using(run_after=due).enqueue(str(ran), "scheduled")
        wait_settled()
        assert Counter(lines(ran)) == Counter([*(f"{n}" for n in range(200)), "scheduled"])
        assert states() == {"finished": 207, "failed": 1}
        assert running.stop() == 0
        said = "polls for new work, and does not listen: a connection pooler stands before 'pooled'"
        assert running.output.count(f"worker-1-1 {said}") == 1
        assert running.output.count(f"worker-1-2 {said}") == 1
        assert "listen_database_alias" in running.output
        # The pooler's sessions, which the runtime used, held at once so that each is seen.
        sessions = {}
        with transaction.atomic(using="pooled"):
            sessions |= {row[0]: row[1:] for row in [ask("pooled", SETTINGS)]}
            alias("neighbour", **{key: plain("pooled")[key] for key in ("HOST", "PORT")})
            sessions |= {row[0]: row[1:] for row in [ask("neighbour", SETTINGS)]}
        assert [plans[:4] for plans in sessions.values()] == [("on",) * 4] * 2
        assert ask("pooled", "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'listen%'") == (0,)

    @pytest.mark.parametrize("way", ["past the pooler", "through one of whole sessions"])
    def test_it_listens(self, alias, pooler, runtime, project, settings, tmp_path, way):
        past = way == "past the pooler"
        alias("pooled", **pooler("transaction" if past else "session", size=20).settings)
        alias("direct", OPTIONS={"application_name": "listener"})
        listens_on = "direct" if past else "pooled"
        # Polling alone would look every 50 seconds once it has backed off.
        options = {"workers": {"threads": 1, "polling_interval": 5}, "listen_database_alias": listens_on}
        settings.TASKS = {"default": task_alias(database_alias="pooled", **options)}
        around = "".join(f"DATABASES[{name!r}] = {plain(name)!r}\n" for name in ("pooled", "direct"))
        running = runtime(environment=project(settings=f"{around}TASKS = {settings.TASKS!r}\n"), rows=2)
        looks: list[tuple[int, float]] = []

        def quiet():
            scans = ask(
                "default", "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'dj_queue_ready_executions'"
            )
            if not looks or looks[-1][0] != scans[0]:
                looks.append((scans[0], time.monotonic()))
            return time.monotonic() - looks[-1][1] > 2.5

        wait_until(quiet, what="its polling has backed off")
        ran = tmp_path / "ran"
        began = time.monotonic()
        # The notification itself goes through the pooler.
        enqueue((tasks.append_line, str(ran), "told"))
        wait_until(lambda: lines(ran) == ["told"])
        assert time.monotonic() - began < 2
        assert "does not listen" not in running.output
        if past:
            # When that connection breaks, nothing else does.
            ask(
                "default",
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'listener'",
            )
            wait_until(lambda: "does not listen: 'direct', over which it listens, does not answer" in running.output)
            enqueue((tasks.append_line, str(ran), "polled"))
            wait_until(lambda: lines(ran) == ["told", "polled"])
            wait_until(lambda: "worker-1 listens for new work again" in running.output)
            assert "the database is away" not in running.output
        assert running.stop() == 0


class TestListener:
    @pytest.fixture
    def listener(self, settings, alias):
        started = []

        def start(**options):
            settings.TASKS = {"default": task_alias(**options)}
            started.append(Listener(backend_config(), "worker-1"))
            started[-1].connected()
            started[-1].look_after()
            return started[-1]

        yield start
        for each in started:
            each.close()

    def test_an_alias_behind_a_pooler_too(self, listener, pooled, caplog):
        assert not listener(database_alias="pooled", listen_database_alias="neighbour").listening
        assert "a connection pooler stands before 'neighbour' too. Name an alias that goes around it" in caplog.text

    def test_an_alias_of_another_database(self, listener, pooled, alias, caplog):
        alias("elsewhere", NAME="postgres")
        assert not listener(database_alias="pooled", listen_database_alias="elsewhere").listening
        assert "'elsewhere' leads to another database than 'pooled'. Correct listen_database_alias" in caplog.text

    def test_an_alias_that_does_not_answer(self, listener, pooled, alias, caplog, monkeypatch):
        alias("nowhere", HOST="/nowhere/at-all")
        found = listener(database_alias="pooled", listen_database_alias="nowhere")
        assert not found.listening
        found._open_at = 0.0
        found.look_after()
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "'nowhere', over which it listens, does not answer" in record.getMessage()

    def test_turned_off_it_is_quiet(self, listener, pooled, alias, caplog):
        alias("direct")
        assert not listener(database_alias="pooled", listen_notify=False).listening
        off = listener(database_alias="pooled", listen_notify=False, listen_database_alias="direct")
        assert not off.listening
        assert not caplog.records
        assert connections["direct"].connection is None

    def test_a_database_that_cannot_tell_is_polled(self, listener, alias):
        if dialect_for("default").listen(connection):
            pytest.skip("the database can tell of new work")
        alias("direct")
        found = listener(listen_database_alias="direct")
        assert not found.listening
        assert found.socket() is None
