"""The other end of a connection to MySQL or MariaDB: what its errors mean, and when it is given up."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

_LOCK_WAIT_TIMEOUT = 1205
# Deadlock; a row that changed under a snapshot; a certification that failed at commit.
_TRANSIENT = {_LOCK_WAIT_TIMEOUT, 1213, 1020, 3101}
# What no other statement would get past: access, shutdown, read only, out of connections, killed.
# Every error of the client library is one of those, but for a packet too large.
_AWAY = {
    1040, 1042, 1043, 1044, 1045, 1047, 1049, 1053, 1077, 1079, 1080, 1081, 1129, 1130,
    1135, 1152, 1158, 1159, 1160, 1161, 1180, 1184, 1203, 1223, 1226, 1290, 1792, 1836, 1927,
    3100, 3159, 3168, 4031,
}  # fmt: skip
# A want of disk, memory or locks; a statement that was interrupted, or took too long, here and on MariaDB.
_MAY_PASS = {1021, 1037, 1038, 1041, 1114, 1206, 1317, 1969, 3024} | _TRANSIENT
_CLIENT_ERRORS = range(2000, 3000)
_PACKET_TOO_LARGE = 2020


def is_transient(error: Error) -> bool:
    return _code(error) in _TRANSIENT


def is_lock_timeout(error: Error) -> bool:
    return _code(error) == _LOCK_WAIT_TIMEOUT


def is_away(error: Error, *, unnumbered: bool) -> bool:
    """Whether its number says so; for an error without one, what the kind of error says."""
    code = _code(error)
    if code in _CLIENT_ERRORS:
        return code != _PACKET_TOO_LARGE
    return (code == 0 and unnumbered) or code in _AWAY


def may_pass(error: Error) -> bool:
    return _code(error) in _MAY_PASS


def watch(connection: BaseDatabaseWrapper) -> None:
    """End a connection whose server no longer acknowledges, after half a minute instead of a quarter of an hour."""
    fileno = getattr(connection.connection, "fileno", None)
    timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if fileno is None or timeout is None:
        return
    with socket.socket(fileno=os.dup(fileno())) as peer:
        if peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.IPPROTO_TCP, timeout, 30_000)


@contextmanager
def bounding_waits(connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
    """For row locks and for those on tables that are being altered; in whole seconds."""
    names = ("innodb_lock_wait_timeout", "lock_wait_timeout")
    change = f"SET SESSION {', '.join(f'{name} = %s' for name in names)}"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(f'@@SESSION.{name}' for name in names)}")
        before = cursor.fetchone()
        cursor.execute(change, [max(1, round(seconds))] * len(names))
    raw = connection.connection
    try:
        yield
    finally:
        if connection.connection is raw and raw is not None:  # else it went with its session
            with suppress(Error), connection.cursor() as cursor:
                cursor.execute(change, before)


def _code(error: Error) -> int:
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0
