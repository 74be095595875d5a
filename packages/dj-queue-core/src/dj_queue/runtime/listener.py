"""Hears of new work where the database can tell: on the worker's own connection, or past a pooler.

Polling stays the truth: what goes wrong here is said, and costs only time.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from django.db import Error, connections

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue.operations import transactions

logger = logging.getLogger("dj_queue")

# Seconds between two looks at a connection that does nothing but listen, alive or not.
_LOOK = 10.0


class Listener:
    """One worker's, in the worker's thread."""

    def __init__(self, config: BackendConfig, name: str) -> None:
        self.listening = False
        self._config = config
        self._name = name
        self._queue = config.database_alias
        self._alias = config.listen_database_alias or self._queue
        self._look_at = 0.0
        self._said = ""

    @property
    def apart(self) -> bool:
        """Whether it has a connection that is not the queue's."""
        return self._alias != self._queue

    def connected(self) -> None:
        """The queue's connection was opened anew."""
        if self.apart:
            self._look_at = 0.0
        else:
            self.listening = self._config.listen_notify and self._may_listen() and self._listen()

    def look_after(self) -> None:
        """Open, or see to, a connection of its own; to be called now and then."""
        if not self.apart or not self._config.listen_notify or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK
        try:
            if self.listening:
                with connections[self._alias].cursor() as cursor:
                    dialect_for(self._alias).now(cursor)
            else:
                self.listening = self._open()
        except Error as error:
            self.lost(error)

    def heard(self) -> bool:
        """Whether there was word of new work since the last call. Raises what the driver does."""
        return self._config.alias in dialect_for(self._alias).notified(connections[self._alias])

    def socket(self) -> int | None:
        """What turns readable when there is word; None while nobody listens."""
        connection = connections[self._alias]
        if not self.listening or connection.connection is None:
            return None
        return dialect_for(self._alias).socket(connection)

    def lost(self, error: Exception) -> None:
        """A connection of its own broke, or cannot be opened."""
        self._say(f"{self._alias!r}, over which it listens, does not answer: {error}")
        self.close()

    def close(self) -> None:
        if self.apart:
            self.listening = False
            with suppress(Error):
                connections[self._alias].close()

    # ---- steps ----

    def _may_listen(self) -> bool:
        if self._config.listen_database_alias is None and dialect_for(self._alias).is_pooled(connections[self._alias]):
            self._say(
                f"a connection pooler stands before {self._alias!r}, and what pools transactions delivers no"
                " notifications. Name an alias that goes around it as the option listen_database_alias (the same"
                " one, if it pools whole sessions), or turn listen_notify off"
            )
            return False
        return True

    def _open(self) -> bool:
        transactions.dedicate(self._alias)
        connection = connections[self._alias]
        connection.close()
        connection.ensure_connection()
        if self._config.silence_polling:
            transactions.silence(self._alias)
        dialect = dialect_for(self._alias)
        dialect.prepare_session(connection)
        if dialect.is_pooled(connection):
            self._say(f"a connection pooler stands before {self._alias!r} too. Name an alias that goes around it")
        elif self._place(self._alias) != self._place(self._queue):
            self._say(f"{self._alias!r} leads to another database than {self._queue!r}. Correct listen_database_alias")
        elif self._listen():
            return True
        connection.close()
        return False

    def _listen(self) -> bool:
        if not dialect_for(self._alias).listen(connections[self._alias]):
            return False
        if self._said:
            logger.warning("dj_queue %s listens for new work again", self._name)
            self._said = ""
        return True

    def _place(self, alias: str) -> object:
        with connections[alias].cursor() as cursor:
            return dialect_for(alias).vendor, dialect_for(alias).place(cursor)

    def _say(self, what: str) -> None:
        """Say it once, until it listens again or something else is wrong."""
        if what != self._said:
            logger.warning("dj_queue %s polls for new work, and does not listen: %s", self._name, what)
        self._said = what
