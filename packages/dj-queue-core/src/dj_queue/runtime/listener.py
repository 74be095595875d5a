"""Hears of new work where the database can tell: on the worker's own connection, or past a pooler.

Polling stays the truth: what goes wrong here is said, and costs only time.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from django.db import Error, OperationalError, connections

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue.error_reporting import report
from dj_queue.runtime import connect

logger = logging.getLogger("dj_queue")

# Who has nothing to ask is not heard of either: this number of seconds apart, a listener asks all the same.
_PING = 15.0
# Seconds between two attempts to open a connection that only listens.
_RETRY = 10.0


class Listener:
    """One worker's, in the worker's thread."""

    def __init__(self, config: BackendConfig, name: str) -> None:
        self.listening = False
        self._config = config
        self._name = name
        self._queue = config.database_alias
        self._alias = config.listen_database_alias or self._queue
        # On the monotonic clock.
        self._open_at = 0.0
        self._ping_at = 0.0
        self._said = ""
        self._failed = False

    @property
    def apart(self) -> bool:
        """Whether it has a connection that is not the queue's."""
        return self._alias != self._queue

    def connected(self) -> None:
        """The queue's connection was opened anew."""
        if self.apart:
            self._open_at = 0.0
        elif self._config.listen_notify:
            try:
                self.listening = self._may_listen() and self._listen()
            except Error as error:
                if dialect_for(self._alias).is_away(error):
                    raise
                # The server refuses this alone, so polling serves.
                self._say(f"{self._alias!r} does not let it listen: {error}")
                self.lost(error)

    def look_after(self) -> None:
        """Open a connection of its own, where it is to have one and has none; to be called now and then."""
        if not self.apart or self.listening or not self._config.listen_notify or time.monotonic() < self._open_at:
            return
        self._open_at = time.monotonic() + _RETRY
        try:
            self.listening = self._open()
        except Error as error:
            self.lost(error)

    def ping(self) -> None:
        """Raise `OperationalError` if the server was not heard of for a while, and does not answer."""
        now = time.monotonic()
        if now >= self._ping_at:
            self._ping_at = now + _PING
            if not connections[self._alias].is_usable():
                raise OperationalError("its connection does not answer")

    def heard(self) -> bool:
        """Whether there was word of new work since the last call. Raises what the driver does."""
        return self._config.alias in dialect_for(self._alias).notified(connections[self._alias])

    def socket(self) -> int | None:
        """What turns readable when there is word; None while nobody listens."""
        connection = connections[self._alias]
        if not self.listening or connection.connection is None:
            return None
        return dialect_for(self._alias).socket(connection)

    def lost(self, error: Exception, *, tell: bool = True) -> None:
        """What it listens on broke, cannot be opened, or does not let it listen: told once, until it listens again."""
        if tell and not self._failed:
            self._failed = True
            if self.apart:
                self._say(f"{self._alias!r}, over which it listens, does not answer: {error}")
            report(self._config, error, "worker.notify", traceback=False)
        self.listening = False
        self.close()

    def close(self) -> None:
        if self.apart:
            self.listening = False
            with suppress(Error):
                connections[self._alias].close()

    # ---- steps ----

    def _may_listen(self) -> bool:
        if reason := dialect_for(self._alias).deaf():
            self._say(f"{reason}, or turn listen_notify off")
            return False
        if self._config.listen_database_alias is None and dialect_for(self._alias).is_pooled(connections[self._alias]):
            self._say(
                f"a connection pooler stands before {self._alias!r}, and what pools transactions delivers no"
                " notifications. Name an alias that goes around it as the option listen_database_alias (the same"
                " one, if it pools whole sessions), or turn listen_notify off"
            )
            return False
        return True

    def _open(self) -> bool:
        self.close()
        if reason := dialect_for(self._alias).deaf():
            self._say(f"{reason}, or turn listen_notify off")
            return False
        connect.to_database(self._config, self._alias)
        if dialect_for(self._alias).is_pooled(connections[self._alias]):
            self._say(f"a connection pooler stands before {self._alias!r} too. Name an alias that goes around it")
        elif self._place(self._alias) != self._place(self._queue):
            self._say(f"{self._alias!r} leads to another database than {self._queue!r}. Correct listen_database_alias")
        elif self._listen():
            return True
        self.close()
        return False

    def _listen(self) -> bool:
        if not dialect_for(self._alias).listen(connections[self._alias]):
            return False
        self._ping_at = time.monotonic() + _PING
        if self._said:
            logger.warning("dj_queue %s listens for new work again", self._name)
        self._said, self._failed = "", False
        return True

    def _place(self, alias: str) -> object:
        with connections[alias].cursor() as cursor:
            return dialect_for(alias).vendor, dialect_for(alias).place(cursor)

    def _say(self, what: str) -> None:
        """Say it once, until it listens again or something else is wrong."""
        if what != self._said:
            logger.warning("dj_queue %s polls for new work, and does not listen: %s", self._name, what)
        self._said = what
