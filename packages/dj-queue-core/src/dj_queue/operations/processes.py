"""The rows of running processes: register, heartbeat, deregister."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import DateTimeField, Expression, ExpressionWrapper, QuerySet

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for, elapsed
from dj_queue.models import Process
from dj_queue.operations import readable


def register(
    config: BackendConfig,
    *,
    kind: Process.Kind,
    name: str,
    pid: int,
    hostname: str,
    metadata: Mapping[str, Any],
    supervisor_id: int | None = None,
) -> int:
    """Store a process row; return its id."""
    now = dialect_for(config.database_alias).clock()
    row = Process.objects.using(config.database_alias).create(
        backend_alias=config.alias,
        kind=kind,
        name=name,
        pid=pid,
        hostname=hostname,
        metadata=dict(metadata),
        supervisor_id=supervisor_id,
        created_at=now,
        last_heartbeat_at=now,
    )
    return row.pk


def heartbeat(config: BackendConfig, process_id: int) -> bool:
    """Say that the process is alive, by the database's clock; False if its row is gone."""
    rows = Process.objects.using(config.database_alias).filter(pk=process_id)
    return rows.update(last_heartbeat_at=dialect_for(config.database_alias).clock()) > 0


def deregister(config: BackendConfig, process_id: int) -> None:
    remove(config, process_id)


def deregister_unanswered(config: BackendConfig, *, name: str, supervisor_id: int | None) -> None:
    """Delete the row that a registration may have stored whose answer was lost.

    A supervisor has one living runner of a name. Of a supervisor itself nothing tells whose a row is: its heartbeat
    expires.
    """
    if supervisor_id is not None:
        process_id = find(config, name=name, supervisor_id=supervisor_id)
        if process_id is not None:
            remove(config, process_id)


def remove(config: BackendConfig, process_id: int) -> None:
    """Delete the row alone. A claim that commits too late keeps its name, by which it may be settled."""
    rows = Process.objects.using(config.database_alias)
    rows.filter(supervisor_id=process_id).update(supervisor=None)
    rows.filter(pk=process_id)._raw_delete(config.database_alias)


def find(config: BackendConfig, *, name: str, supervisor_id: int) -> int | None:
    """Return the id of a supervisor's runner, if it is registered."""
    rows = Process.objects.using(config.database_alias)
    return rows.filter(name=name, supervisor_id=supervisor_id).values_list("pk", flat=True).first()


def count_fresh(config: BackendConfig, *, max_age: float, kind: str | None = None, hostname: str | None = None) -> int:
    """Return how many processes of the alias, a kind or a host had a heartbeat within `max_age` seconds."""
    wanted = {"kind": kind, "hostname": hostname}
    rows = of_alias(config).filter(**{name: value for name, value in wanted.items() if value is not None})
    return sum(beat.at is not None and beat.age <= max_age for beat in last_beats(config, rows))


def lacks_workers(config: BackendConfig, *, max_age: float = 0.0) -> bool:
    """Whether a supervisor has beaten for longer than `process_alive_threshold`, and no worker has within that time.

    Only where it is to run workers; a longer `max_age` (seconds) counts instead. While all workers hang, or none
    comes to start, the supervisor's own row would say that all is well.
    """
    longest = max(max_age, config.process_alive_threshold)
    rows = of_alias(config).filter(kind__in=[Process.Kind.WORKER, Process.Kind.SUPERVISOR])
    found = rows.values_list("kind", "last_heartbeat_at", "created_at", "metadata", clock(config))
    fresh = [row for row in readable.read(found).rows if row[1] and row[2] and elapsed(row[1], row[4]) <= longest]
    if any(kind == Process.Kind.WORKER for kind, *_ in fresh):
        return False
    waited = [told for _, _, created_at, told, now in fresh if elapsed(created_at, now) > longest]
    return any(isinstance(told, dict) and told.get("worker_count") for told in waited)


def of_alias(config: BackendConfig) -> QuerySet[Process]:
    return Process.objects.using(config.database_alias).filter(backend_alias=config.alias)


class Beat(NamedTuple):
    """The last heartbeat of a process."""

    process_id: int
    at: datetime | None  # None if it cannot be read
    age: float  # seconds, by the database's clock; 0.0 then


def last_beats(config: BackendConfig, rows: QuerySet[Process]) -> list[Beat]:
    found = rows.order_by("pk").values_list("pk", "last_heartbeat_at", clock(config))
    readable_ones, lost = readable.read(found)
    beats = [Beat(pk, at, elapsed(at, now) if at else 0.0) for pk, at, now in readable_ones]
    return beats + [Beat(pk, None, 0.0) for pk in lost]


def clock(config: BackendConfig) -> Expression:
    """The database's clock, to be read."""
    return ExpressionWrapper(dialect_for(config.database_alias).clock(), DateTimeField())


class Sightings:
    """Since when each heartbeat has stood as it is, by a clock of ours that nobody sets.

    The database's clock may be put forward or back, and without time zones it is, twice a year: what it says
    of a heartbeat's age counts only until we have looked ourselves.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[datetime | None, float]] = {}
        self._looked_at = -float("inf")

    def unchanged(self, beats: Iterable[Beat]) -> dict[int, float]:
        """Take a look; return for how many seconds each process's row has had the heartbeat that it has."""
        now = time.monotonic()
        seen: dict[int, tuple[datetime | None, float]] = {}
        for process_id, at, age in beats:
            known = self._seen.get(process_id)
            if known is not None and known[0] == at:
                seen[process_id] = known
            else:
                # It has come since the last look, whatever its age; of one that we never saw, that is all we know.
                seen[process_id] = (at, now - age if known is None else max(now - age, self._looked_at))
        self._seen, self._looked_at = seen, now
        return {process_id: now - since for process_id, (_, since) in seen.items()}
