"""One unit of work on the queue's database."""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar

from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

from dj_queue import events
from dj_queue.dialects import Dialect, dialect_for, in_transaction

logger = logging.getLogger("dj_queue")

_ATTEMPTS = 8
# Seconds before the second attempt, at most; twice as many before each further one.
_FIRST_PAUSE = 0.005
# Until when, on the monotonic clock, what collides is tried again.
_until: ContextVar[float] = ContextVar("until", default=float("inf"))


def run[T](
    database: str,
    work: Callable[[Dialect, CursorWrapper], T],
    *,
    one_statement: bool = False,
    waits_again: bool = True,
) -> T:
    """Run `work` in one transaction, again if the database says that it only collided.

    With `one_statement`, `work` is a single statement on databases that can, and then is its own
    transaction. Without `waits_again`, what has waited for a lock for as long as its connection may does not
    wait for it anew: the caller has something better to do. Inside a caller's transaction it joins that one,
    and a collision is the caller's to handle, because the database has already given up what the caller did
    before.
    """
    connection = connections[database]
    dialect = dialect_for(database)
    for attempt in range(1, _ATTEMPTS + 1):
        # Again, it is in a transaction for which the dialect can choose the isolation level.
        alone = one_statement and dialect.one_statement and attempt == 1
        try:
            if alone:
                with connection.cursor() as cursor:
                    return work(dialect, cursor)
            with ExitStack() as stack:
                _begin(stack, connection, again=attempt > 1)
                cursor = stack.enter_context(connection.cursor())
                return work(dialect, cursor)
        except OperationalError as error:
            waited = not waits_again and dialect.is_lock_timeout(error)
            final = waited or attempt == _ATTEMPTS or time.monotonic() >= _until.get()
            if connection.in_atomic_block or final or not dialect.is_transient(error):
                _advise(database, dialect, error)
                raise
            events.emit("transaction.retried", attempt=attempt, error=str(error))
        except DatabaseError as error:
            _advise(database, dialect, error)
            raise
        # Those that collided must not meet again. What is waited for here is a few commits, no event.
        time.sleep(random.uniform(0, _FIRST_PAUSE * 2 ** (attempt - 1)))
    raise AssertionError("unreachable")


@contextmanager
def bounded(database: str, seconds: float) -> Iterator[None]:
    """Inside, this thread waits at most about so long for each lock on the database, and then tries no more.

    What waits longer raises the database's transient error: `contended` tells it from others.
    """
    token = _until.set(time.monotonic() + seconds)
    try:
        with dialect_for(database).bounding_waits(connections[database], seconds):
            yield
    finally:
        _until.reset(token)


class _UndoneError(Exception):
    """What was tried went well, and is undone."""


def refusal(database: str, work: Callable[[], object]) -> DatabaseError | None:
    """What the database says to some work, inside a transaction and undone in any case; None if it accepts it."""
    try:
        with transaction.atomic(using=database):
            work()
            raise _UndoneError
    except _UndoneError:
        return None
    except DatabaseError as error:
        if dialect_for(database).is_away(error) or dialect_for(database).is_transient(error):
            raise
        return error


def contended(database: str, error: Exception) -> bool:
    """Whether it is only that others hold what the transaction wants."""
    return isinstance(error, OperationalError) and dialect_for(database).is_transient(error)


def dedicate(database: str) -> None:
    """Give this thread a connection of its own where the others share a pool of Django's.

    The runtime keeps its connections for as long as it runs and adjusts them: they must neither take a
    place in the application's pool nor come back to it.
    """
    shared = connections[database]
    if not shared.settings_dict["OPTIONS"].get("pool"):
        return
    shared.close()
    options = {key: value for key, value in shared.settings_dict["OPTIONS"].items() if key != "pool"}
    connections[database] = type(shared)({**shared.settings_dict, "OPTIONS": options}, database)


def silence(database: str) -> None:
    """Keep this thread's statements on the queue's database out of the SQL log and DEBUG's list of queries."""
    connection = connections[database]
    connection.make_debug_cursor = connection.make_cursor  # type: ignore[assignment]


def left_open() -> dict[str, int]:
    """This thread's connections that are inside a transaction, and in how many atomic blocks each is."""
    return {each.alias: len(each.atomic_blocks) for each in connections.all(initialized_only=True) if is_open(each)}


def abandon(before: Mapping[str, int] | None = None) -> list[str]:
    """Roll back what this thread's connections were left in, but for what was open `before`; return their aliases.

    Such a connection is forgotten, so that the next use of its alias opens another one. What is rolled back
    inside a transaction of the caller's is what was done since its last savepoint.
    """
    before = before or {}
    abandoned = []
    for connection in connections.all(initialized_only=True):
        alias = connection.alias
        if not is_open(connection):
            continue
        if alias not in before:
            abandoned.append(alias)
            _forget(connection)
        elif len(connection.atomic_blocks) > before[alias]:
            abandoned.append(alias)
            left = RuntimeError("the block was left open")
            while len(connection.atomic_blocks) > before[alias]:
                connection.atomic_blocks[-1].__exit__(RuntimeError, left, None)
    return abandoned


def roll_back_unseen() -> None:
    """Roll back on this thread's open connections where it cannot be asked whether a transaction is open."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue
        if not connection.settings_dict["AUTOCOMMIT"] or in_transaction(connection) is None:
            try:
                connection.connection.rollback()
            except Exception:  # it is of no use any more
                _forget(connection)


def tell_left_open(what: str, aliases: Iterable[str]) -> None:
    logger.error(
        "dj_queue: %s left a transaction open on the database %s. What it did in there is rolled back, and the"
        " connection is closed. Enter transaction.atomic() by a `with` statement, and end what BEGIN has begun.",
        what,
        ", ".join(map(repr, aliases)),
    )


def observe[T](database: str, read: Callable[[Dialect, CursorWrapper], T]) -> T:
    """Read much at once with every row found by index; no transaction where that needs none.

    On SQLite a transaction of the recommended kind would take the one write lock.
    """

    def look(dialect: Dialect, cursor: CursorWrapper) -> T:
        with dialect.observing(cursor):
            return read(dialect, cursor)

    dialect = dialect_for(database)
    if dialect.observes_in_transaction:
        return run(database, look)
    with connections[database].cursor() as cursor:
        return look(dialect, cursor)


def read[T](database: str, call: Callable[[], T]) -> T:
    """Read outside any transaction of ours; again where it only collided, as a read may at SERIALIZABLE."""
    dialect = dialect_for(database)
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except OperationalError as error:
            collided = dialect.is_transient(error) and not dialect.is_lock_timeout(error)
            if not collided or connections[database].in_atomic_block:
                raise
        time.sleep(random.uniform(0, _FIRST_PAUSE * 2 ** (attempt - 1)))
    return call()


def look(database: str, read: Callable[[Dialect, CursorWrapper], bool]) -> bool:
    """Read once, outside any transaction of ours; no statement where the dialect has nothing to ask."""
    with connections[database].cursor() as cursor:
        return read(dialect_for(database), cursor)


def _begin(stack: ExitStack, connection: BaseDatabaseWrapper, *, again: bool) -> None:
    block = transaction.atomic(using=connection.alias)
    if connection.in_atomic_block:
        stack.enter_context(block)
        return
    with dialect_for(connection.alias).beginning(connection, again=again):
        stack.enter_context(block)


def is_open(connection: BaseDatabaseWrapper) -> bool:
    """Whether it is inside a transaction."""
    if connection.in_atomic_block:
        return True
    # Where autocommit is off by the settings, some transaction is always open.
    if connection.connection is None or not connection.settings_dict["AUTOCOMMIT"]:
        return False
    return not connection.autocommit or bool(in_transaction(connection))


def _forget(connection: BaseDatabaseWrapper) -> None:
    # What follows may fail in every way; nobody uses the connection after it.
    with suppress(Exception):
        connection.connection.rollback()
    with suppress(Exception):
        connection.close()
    del connections[connection.alias]


def _advise(database: str, dialect: Dialect, error: DatabaseError) -> None:
    if dialect.lacks_table(error) and "dj_queue_" in str(error):
        error.add_note(f"dj-queue's tables are not there. Run: manage.py migrate dj_queue --database {database}")
    elif dialect.lacks_column(error):
        # Which of the two cannot be asked here: the transaction may be the caller's, and is broken.
        error.add_note(
            "dj-queue's tables are another version's. If dj-queue 0.6 made them, docs/upgrading.md says how to replace"
            f" them. If an earlier 1.x did, run manage.py migrate dj_queue --database {database}"
        )
