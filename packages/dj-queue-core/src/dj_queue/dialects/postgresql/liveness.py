"""A PostgreSQL server that has gone silent is noticed; one that only takes its time is left alone.

The operating system gives up on a peer that no longer acknowledges. It cannot know of one that is gone
behind something that does, such as a proxy. So a thread that waits too long for an answer asks on a new
connection whether the server still works on it.
"""

import os
import socket
from collections.abc import Callable, Generator
from threading import get_ident
from time import monotonic
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

# Seconds without an answer after which the server is asked, and asked again.
PATIENCE = 10.0
# Seconds without an answer where nobody can be asked: no new connection, or a pooler that hides the session.
LONGEST = 60.0
# Seconds for an answer that is on its way while the server says that it works on none.
_GRACE = 1.0
_TO_CONNECT = 5

_ASK = (
    "SELECT pg_backend_pid(), count(*), max(state)"
    " FROM pg_stat_activity WHERE pid = %s AND datname = current_database()"
)
_WORKING = ("active", "fastpath function call")
_UNTOLD = (None, "disabled")

# Whether a silence is over: asked whenever there is nothing to read, again and again.
type Judge = Callable[[], bool]


def watch(connection: BaseDatabaseWrapper) -> None:
    """From now on, whenever this thread waits for an answer on this connection, it does not wait forever."""
    raw = connection.connection
    if getattr(raw, "pgconn", None) is None:  # psycopg2, which waits where nobody can look
        return
    _let_the_system_give_up(raw.pgconn.socket)
    owner = get_ident()

    def wait(gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        # From a pool, the application's threads get the same connections; their statements are their own.
        if get_ident() == owner:
            gen = _watched(gen, lambda: _Silence(connection, raw).is_final)
        return type(raw).wait(raw, gen, *args, **kwargs)

    raw.wait = wait


def _watched(gen: Generator[Any, Any, Any], judge: Callable[[], Judge]) -> Generator[Any, Any, Any]:
    """What psycopg waits for, given up once a silence is final.

    Such a generator says what it waits for, and is sent what is ready: nothing, at every interval.
    """
    from psycopg import OperationalError

    is_final = judge()
    try:
        state = next(gen)
        while True:
            ready = yield state
            if ready:
                is_final = judge()
            elif is_final():
                raise OperationalError("the server no longer answers: the connection is given up")
            state = gen.send(ready)
    except StopIteration as end:
        return end.value


class _Silence:
    """Since when nothing has been heard, and what is known about it."""

    def __init__(self, connection: BaseDatabaseWrapper, raw: Any) -> None:
        self._connection = connection
        self._raw = raw
        self._since = monotonic()
        self._ask_at = self._since + PATIENCE
        self._nothing_comes = False

    def is_final(self) -> bool:
        if monotonic() < self._ask_at:
            return False
        working = False if self._nothing_comes else _is_working(self._connection, self._raw.pgconn.backend_pid)
        now = monotonic()
        if self._nothing_comes or (working is None and now - self._since >= LONGEST):
            # A rollback would wait for the same answer.
            self._raw.close()
            return True
        if working:
            self._since = now
        self._nothing_comes = working is False
        self._ask_at = now + (_GRACE if self._nothing_comes else PATIENCE)
        return False


def _is_working(connection: BaseDatabaseWrapper, pid: int) -> bool | None:
    """Whether the server works on something for the session `pid`; None if that cannot be learnt."""
    from psycopg import Error, connect

    params = {**connection.get_connection_params(), "connect_timeout": _TO_CONNECT, "autocommit": True}
    deadline = monotonic() + 2 * _TO_CONNECT

    def wait(gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        return type(other).wait(other, _watched(gen, lambda: lambda: monotonic() > deadline), *args, **kwargs)

    try:
        with connect(**params) as other:
            other.wait = wait  # type: ignore[method-assign]
            own, sessions, state = other.execute(_ASK, [pid]).fetchone()  # type: ignore[misc]
            hidden = own != other.pgconn.backend_pid
    except Error:
        return None
    if hidden or (sessions and state in _UNTOLD):
        return None
    return state in _WORKING


def _let_the_system_give_up(descriptor: int) -> None:
    """After half a minute, instead of a quarter of an hour or never."""
    options = {"TCP_USER_TIMEOUT": 30_000, "TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    with socket.socket(fileno=os.dup(descriptor)) as peer:
        if peer.family not in (socket.AF_INET, socket.AF_INET6):
            return
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):  # no system has all of them but Linux
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
