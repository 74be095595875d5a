"""How many rows a transaction takes: fewer where the database refuses that many, and in time more again."""

from __future__ import annotations

from collections.abc import Callable

from django.db import DatabaseError, DataError, IntegrityError, connections

from dj_queue.dialects import dialect_for

# How many batches of a size go well before a larger one is tried.
_BEFORE_MORE = 8
# After these, a savepoint of ours is rolled back, and the caller's transaction goes on.
_HARMLESS = (IntegrityError, DataError)


class Batches:
    """The size of one kind of batch on one database: halved down to one row for as long as it is refused.

    A limit on a statement's time or a want of memory refuses a large batch each time, and a small one never.
    """

    def __init__(self, database: str, most: int) -> None:
        self._database, self._most = database, most
        self.size = most
        self._well = 0

    def run[T](self, work: Callable[[int], T]) -> T:
        """Return what `work` does with a size. Raises what is refused of a single row, or of a caller's transaction."""
        while True:
            try:
                done = work(self.size)
            except DatabaseError as error:
                if self.size == 1 or not may_be_smaller(self._database, error):
                    raise
                self.size //= 2
                self._well = 0
                continue
            self._well += 1
            if self._well >= _BEFORE_MORE and self.size < self._most:
                self.size = min(2 * self.size, self._most)
                self._well = 0
            return done


def may_be_smaller(database: str, error: DatabaseError) -> bool:
    """Whether fewer rows at once may be accepted, and the caller's transaction was not broken by more."""
    if connections[database].in_atomic_block:
        return isinstance(error, _HARMLESS)
    dialect = dialect_for(database)
    # Of one writer for the whole database, no small batch gets more than a large one.
    one_writer = not connections[database].features.has_select_for_update
    return not (dialect.is_away(error) or (one_writer and dialect.is_transient(error)))


def is_of_the_row(database: str, error: Exception) -> bool:
    """Whether what is refused of one row says something of that row alone: others may go past it."""
    if not isinstance(error, DatabaseError):
        return True  # a receiver's, or a value that cannot be read
    dialect = dialect_for(database)
    passing = dialect.may_pass(error) or dialect.is_transient(error)
    return may_be_smaller(database, error) and (isinstance(error, _HARMLESS) or passing)
