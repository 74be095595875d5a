"""A supervisor in a thread of somebody else's process, such as a web server's."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from contextlib import suppress

from django.db import Error, connections

from dj_queue.config import BackendConfig, process_config
from dj_queue.operations import transactions

from dj_queue.runtime.supervisor import AsyncSupervisor  # isort: skip: it says where nothing can run
from dj_queue.error_reporting import report
from dj_queue.runtime.part import backoff
from dj_queue.runtime.startup import NotReadyError, await_schema

logger = logging.getLogger("dj_queue")

# For the database to answer with its migrations applied: what `manage.py dj_queue --wait` has as its default.
_PATIENCE = 30.0
_PAUSE = 0.5


class Embedded:
    """Starts, polls and stops one `AsyncSupervisor` in a daemon thread that owns its queue connection.

    Nothing here waits, and nothing touches signals: the host waits for the futures.
    """

    def __init__(self, backend_alias: str = "default") -> None:
        self.started: Future[AsyncSupervisor] = Future()
        self.ended: Future[None] = Future()
        for future in (self.started, self.ended):
            future.set_running_or_notify_cancel()  # who waits may stop waiting, and cancels nothing with that
        self._backend_alias = backend_alias
        self._asked = threading.Event()
        # A daemon: a server that is ended without telling us must not wait for ever.
        self._thread = threading.Thread(target=self._run, name=f"dj-queue-{backend_alias}", daemon=True)

    def start(self) -> None:
        """Start the thread. `started` then has the supervisor, or why there is none."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the supervisor to stop. `ended` is done once it has, within `shutdown_timeout` and a little more."""
        self._asked.set()

    # ---- steps, all in the thread ----

    def _run(self) -> None:
        try:
            try:
                supervisor = self._started()
            except Exception as error:
                self.started.set_exception(error)
                return
            self.started.set_result(supervisor)
            self._poll(supervisor)
            supervisor.stop()
            if supervisor.unfinished:
                logger.warning(
                    "dj_queue %s: jobs were still running when the time was up. They stay its own until this"
                    " process ends. Raise shutdown_timeout if they should finish first.",
                    supervisor.name,
                )
        except Exception as error:
            self.ended.set_exception(error)
        finally:
            with suppress(Error):
                connections.close_all()
            if not self.ended.done():
                self.ended.set_result(None)

    def _started(self) -> AsyncSupervisor:
        config = embedded_config(self._backend_alias)
        self._await_schema(config)
        if config.silence_polling:
            transactions.silence(config.database_alias)
        supervisor = AsyncSupervisor(config, standalone=False)
        try:
            supervisor.start()
        except Exception:
            with suppress(Exception):
                supervisor.stop()
            raise
        return supervisor

    def _await_schema(self, config: BackendConfig) -> None:
        deadline = time.monotonic() + _PATIENCE
        said = False
        while True:
            try:
                await_schema(config, seconds=0, say=logger.warning)
            except NotReadyError as error:
                if time.monotonic() > deadline or self._asked.is_set():
                    raise
                if not said:
                    logger.warning("%s Waiting up to %g seconds.", error, _PATIENCE)
                    said = True
                self._asked.wait(_PAUSE)
            else:
                return

    def _poll(self, supervisor: AsyncSupervisor) -> None:
        failures = 0
        wait = supervisor.polling_interval
        while not self._asked.wait(wait):
            try:
                supervisor.poll_once()
            except Exception as error:  # the server lives on, and so do the runners
                report(supervisor.config, error, "supervisor.run")
                failures += 1
                wait = max(supervisor.polling_interval, backoff(failures))
            else:
                failures = 0
                wait = supervisor.polling_interval
            finally:
                # Nothing is left open between two beats.
                connections[supervisor.config.database_alias].close()


def embedded_config(backend_alias: str = "default") -> BackendConfig:
    """The configuration of an alias as an embedded supervisor runs it. Raises `ImproperlyConfigured`."""
    return process_config(backend_alias, mode="async")
