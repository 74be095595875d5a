"""The rows of running processes: register, heartbeat, deregister."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue.models import Process


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


def remove(config: BackendConfig, process_id: int) -> None:
    """Delete the row alone. A claim that commits too late keeps its name, by which it may be settled."""
    rows = Process.objects.using(config.database_alias)
    rows.filter(supervisor_id=process_id).update(supervisor=None)
    rows.filter(pk=process_id)._raw_delete(config.database_alias)


def find(config: BackendConfig, *, name: str, supervisor_id: int) -> int | None:
    """Return the id of a supervisor's runner, if it is registered."""
    rows = Process.objects.using(config.database_alias)
    return rows.filter(name=name, supervisor_id=supervisor_id).values_list("pk", flat=True).first()


def count_fresh(config: BackendConfig, *, max_age: float) -> int:
    """Return how many processes of the alias had a heartbeat within `max_age` seconds."""
    rows = Process.objects.using(config.database_alias).filter(backend_alias=config.alias)
    return rows.filter(last_heartbeat_at__gte=dialect_for(config.database_alias).clock(ago=max_age)).count()


def lacks_workers(config: BackendConfig, *, max_age: float = 0.0) -> bool:
    """Whether a supervisor has beaten for longer than `process_alive_threshold`, and no worker has within that time.

    Only where it is to run workers; a longer `max_age` (seconds) counts instead. While all workers hang, or none
    comes to start, the supervisor's own row would say that all is well.
    """
    since = dialect_for(config.database_alias).clock(ago=max(max_age, config.process_alive_threshold))
    fresh = Process.objects.using(config.database_alias).filter(
        backend_alias=config.alias, last_heartbeat_at__gte=since
    )
    if fresh.filter(kind=Process.Kind.WORKER).exists():
        return False
    supervisors = fresh.filter(kind=Process.Kind.SUPERVISOR, created_at__lt=since)
    return any(told.get("worker_count") for told in supervisors.values_list("metadata", flat=True))
