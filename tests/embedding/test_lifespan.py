"""The lifespan protocol by itself: every order of events that a server may come up with."""

import asyncio
import importlib
import logging
import sys
from unittest import mock

import pytest
from django.db import connection

from dj_queue.models import Process
from dj_queue.runtime import embedded, supervisor
from dj_queue_asgi import DjQueueLifespan
from tests.conftest import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

STARTUP = {"type": "lifespan.startup"}
SHUTDOWN = {"type": "lifespan.shutdown"}
COMPLETE = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def deaf(scope, receive, send):
    """Like Django's handler."""
    if scope["type"] == "lifespan":
        raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")


def look():
    """The registered supervisors, from a thread that leaves nothing open."""
    try:
        return list(Process.objects.filter(kind="Supervisor").order_by("backend_alias"))
    finally:
        connection.close()


class Events:
    """A server's side of one lifespan."""

    def __init__(self, application, *events, on_send=None):
        self.application = application
        self.events = list(events)
        self.sent = []
        self.alive = []  # supervisors, whenever something was sent
        self.on_send = on_send

    async def run(self):
        await self.application({"type": "lifespan", "asgi": {"version": "3.0"}}, self.receive, self.send)

    async def receive(self):
        if not self.events:
            await asyncio.Event().wait()
        return self.events.pop(0)

    async def send(self, message):
        self.sent.append(message)
        if not message["type"].endswith("failed"):  # where perhaps no query works
            self.alive.append(len(await asyncio.to_thread(look)))
        if self.on_send:
            self.on_send(message)

    @property
    def types(self):
        return [message["type"] for message in self.sent]


def run(application, *events):
    lifespan = Events(application, *events)
    asyncio.run(lifespan.run())
    return lifespan


class TestOrders:
    def test_startup_and_shutdown(self):
        lifespan = run(DjQueueLifespan(deaf), STARTUP, SHUTDOWN)
        assert lifespan.types == COMPLETE
        assert lifespan.alive == [1, 0]
        assert not Process.objects.exists()

    def test_again_on_the_same_application(self):
        application = DjQueueLifespan(deaf)
        for _ in range(2):
            assert run(application, STARTUP, SHUTDOWN).alive == [1, 0]

    def test_shutdown_without_startup(self):
        assert run(DjQueueLifespan(deaf), SHUTDOWN).types == COMPLETE[1:]

    def test_startup_twice_starts_once(self):
        lifespan = run(DjQueueLifespan(deaf), STARTUP, STARTUP, SHUTDOWN)
        assert lifespan.types == [COMPLETE[0], *COMPLETE]
        assert lifespan.alive == [1, 1, 0]

    def test_an_unknown_event_is_told_and_passed_over(self, caplog):
        lifespan = run(DjQueueLifespan(deaf), {"type": "lifespan.pause"}, STARTUP, SHUTDOWN)
        assert lifespan.types == COMPLETE
        assert "'lifespan.pause'" in caplog.text

    @pytest.mark.parametrize("moment", ["starting", "started"])
    def test_cancelled(self, moment):
        """A server that is killed from its terminal, or an event loop that ends under it."""

        async def main():
            lifespan = Events(DjQueueLifespan(deaf), STARTUP)
            task = asyncio.create_task(lifespan.run())
            if moment == "started":
                while not lifespan.sent:
                    await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert not Process.objects.exists()

    def test_a_server_that_breaks_while_it_is_told(self):
        def broken(message):
            raise OSError("the server is gone")

        lifespan = Events(DjQueueLifespan(deaf), STARTUP, on_send=broken)
        with pytest.raises(OSError, match="gone"):
            asyncio.run(lifespan.run())
        wait_until(lambda: not Process.objects.exists())

    def test_the_event_loop_goes_on_meanwhile(self, monkeypatch):
        """Neither start nor stop run in it."""
        turns = []

        async def main():
            original = supervisor.AsyncSupervisor.start

            def start(self):
                wait_until(lambda: len(turns) > 20)
                original(self)

            monkeypatch.setattr(supervisor.AsyncSupervisor, "start", start)
            lifespan = Events(DjQueueLifespan(deaf), STARTUP, SHUTDOWN)
            task = asyncio.create_task(lifespan.run())
            while not task.done():
                turns.append(len(turns))
                await asyncio.sleep(0.001)
            assert lifespan.types == COMPLETE

        asyncio.run(main())


class TestFailures:
    def test_bad_configuration(self, settings):
        settings.TASKS = {
            "default": {"BACKEND": "dj_queue.backend.DjQueueBackend", "OPTIONS": {"shutdown_timeout": "soon"}}
        }
        lifespan = run(DjQueueLifespan(deaf), STARTUP)
        assert lifespan.types == ["lifespan.startup.failed"]
        assert "shutdown_timeout" in lifespan.sent[0]["message"]
        assert "manage.py check" in lifespan.sent[0]["message"]

    def test_an_alias_that_is_not_ours(self):
        lifespan = run(DjQueueLifespan(deaf, backend_alias="nobody"), STARTUP)
        assert lifespan.types == ["lifespan.startup.failed"]
        assert "nobody" in lifespan.sent[0]["message"]

    def test_missing_migrations(self, monkeypatch):
        monkeypatch.setattr(embedded, "_PATIENCE", 0.0)
        monkeypatch.setattr("dj_queue.operations.schema.unapplied_migrations", lambda database: ["0002_more"])
        lifespan = run(DjQueueLifespan(deaf), STARTUP)
        assert lifespan.types == ["lifespan.startup.failed"]
        assert "manage.py migrate dj_queue" in lifespan.sent[0]["message"]

    def test_it_waits_for_the_database(self, monkeypatch, caplog):
        answers = [["0001_initial"], []]
        monkeypatch.setattr(embedded, "_PAUSE", 0.01)
        monkeypatch.setattr("dj_queue.operations.schema.unapplied_migrations", lambda database: answers.pop(0))
        assert run(DjQueueLifespan(deaf), STARTUP, SHUTDOWN).types == COMPLETE
        assert "Waiting up to 30 seconds" in caplog.text

    @pytest.mark.parametrize("moment", ["start", "stop"])
    def test_anything_unforeseen(self, monkeypatch, caplog, moment):
        original = getattr(supervisor.AsyncSupervisor, moment)

        def broken(self):
            original(self)
            raise ZeroDivisionError("of all things")

        monkeypatch.setattr(supervisor.AsyncSupervisor, moment, broken)
        lifespan = run(DjQueueLifespan(deaf), STARTUP, SHUTDOWN)
        kind = {"start": "lifespan.startup.failed", "stop": "lifespan.shutdown.failed"}[moment]
        assert lifespan.types[-1] == kind
        assert lifespan.sent[-1]["message"] == f"dj_queue did not {moment}: ZeroDivisionError: of all things"
        assert "Traceback" in caplog.text
        assert not Process.objects.exists()

    def test_before_django_is_set_up(self):
        """Where an exception would make the server go on without us."""
        with mock.patch.dict(sys.modules, {"dj_queue.runtime.embedded": None}):
            lifespan = run(DjQueueLifespan(deaf), STARTUP)
        assert lifespan.types == ["lifespan.startup.failed"]

    def test_a_failing_poll_ends_nothing(self, monkeypatch, caplog):
        polls = []

        def poll_once(self):
            polls.append(len(polls))
            if len(polls) < 3:
                raise ZeroDivisionError("of all things")

        monkeypatch.setattr(supervisor.AsyncSupervisor, "poll_once", poll_once)
        monkeypatch.setattr(embedded, "backoff", lambda failures: 0.0)

        async def main():
            lifespan = Events(DjQueueLifespan(deaf), STARTUP)
            task = asyncio.create_task(lifespan.run())
            while len(polls) < 5:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(main())
        assert [record.thread_error_context for record in caplog.records if record.levelno == logging.ERROR] == [
            "supervisor.run"
        ] * 2
        assert not Process.objects.exists()


class TestOtherScopes:
    def test_pass_through_untouched(self, caplog):
        seen = []

        async def application(scope, receive, send):
            seen.append((scope, receive, send))
            return "what it returns is nobody's"

        wrapped = DjQueueLifespan(application)
        for kind in ("http", "websocket"):
            given = ({"type": kind}, object(), object())
            asyncio.run(wrapped(*given))
            assert all(a is b for a, b in zip(seen[-1], given, strict=True))
        # Once: this server has sent no lifespan.
        assert caplog.text.count("without the lifespan protocol") == 1

    def test_their_errors_too(self):
        async def application(scope, receive, send):
            raise LookupError("theirs")

        with pytest.raises(LookupError, match="theirs"):
            asyncio.run(DjQueueLifespan(application)({"type": "http"}, None, None))

    def test_no_word_where_the_server_knows_the_protocol(self, caplog):
        wrapped = DjQueueLifespan(deaf)
        run(wrapped, STARTUP, SHUTDOWN)
        asyncio.run(wrapped({"type": "http"}, None, None))
        assert "lifespan protocol" not in caplog.text


def test_an_alias_each(settings):
    options = {"BACKEND": "dj_queue.backend.DjQueueBackend"}
    settings.TASKS = {"default": options, "other": options}
    lifespan = run(DjQueueLifespan(DjQueueLifespan(deaf), backend_alias="other"), STARTUP, SHUTDOWN)
    assert lifespan.types == COMPLETE
    assert lifespan.alive == [2, 0]


def test_signals_stay_the_servers(monkeypatch):
    def refused(*given):
        raise AssertionError(given)

    loop = asyncio.new_event_loop()  # asyncio.run() takes SIGINT for itself
    monkeypatch.setattr("signal.signal", refused)
    lifespan = Events(DjQueueLifespan(deaf), STARTUP, SHUTDOWN)
    loop.run_until_complete(lifespan.run())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert lifespan.types == COMPLETE


def test_the_promised_path():
    assert importlib.import_module("dj_queue.contrib.asgi").DjQueueLifespan is DjQueueLifespan
