"""How many connections the configured processes may open, and how many they may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connections

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for

# Of every runner: its loop's, and its heartbeat's.
_OWN = 2
# What psycopg's pool holds where nobody says how much; without a maximum, it holds no more than that.
_POOL_MIN = 4


class Shortage(NamedTuple):
    """What there is too little of, and what to do about it."""

    message: str
    hint: str


def server_shortage(configs: Sequence[BackendConfig]) -> Shortage | None:
    """What the server of these aliases, which share one, has too few connections for. Asks the server."""
    database = configs[0].database_alias
    limit = _limit(database)
    need = sum(_connections(config) for config in configs)
    if limit is None or need <= limit:
        return None
    aliases = " and ".join(repr(config.alias) for config in configs)
    return Shortage(
        f"The processes of {aliases} may open {need} connections to the server of the database {database!r},"
        f" which allows {limit}: {_reckoning(configs)}.",
        "Lower `threads` or `processes` of the workers, raise the server's limit, or put a pooler in between.",
    )


def pool_shortages(config: BackendConfig) -> list[Shortage]:
    """Which pools of Django's are too small for the threads of one process."""
    need: dict[str, int] = {}
    for process in _processes(config):
        for database in _databases_used(config):
            need[database] = max(need.get(database, 0), process.threads[database])
    return [
        Shortage(
            f"One process of {config.alias!r} may need {count} connections to the database {database!r} at once,"
            f" and its pool holds {pool[1]}: the others wait, and fail after the pool's timeout.",
            f'Set DATABASES["{database}"]["OPTIONS"]["pool"] to {{"max_size": {count}, ...}}, or lower `threads`.',
        )
        for database, count in sorted(need.items())
        if (pool := _pool(database)) and pool[1] < count
    ]


def same_server(one: BackendConfig, other: BackendConfig) -> bool:
    return _server(one.database_alias) == _server(other.database_alias)


def _limit(database: str) -> int | None:
    with connections[database].cursor() as cursor:
        return dialect_for(database).connection_limit(cursor)


def _connections(config: BackendConfig) -> int:
    """How many connections to the queue's server all processes of an alias may open at once."""
    on_server = _databases_on_server(config)
    return sum(
        process.own
        + sum(_pooled(database, process.threads[database]) for database in on_server if process.threads[database])
        for process in _processes(config)
    )


class _Process(NamedTuple):
    """How many connections a process uses at once: the runtime's own, never from a pool, and its tasks'."""

    own: int
    threads: Counter[str]


def _processes(config: BackendConfig) -> list[_Process]:
    found = [_Process(1, Counter())]
    for worker in config.workers:
        threads = Counter(dict.fromkeys(_databases_used(config), worker.threads))
        found += [_Process(_OWN, threads)] * worker.processes
    found += [_Process(_OWN, Counter())] * (len(config.dispatchers) + config.scheduler_needed)
    if config.mode == "async":
        return [_Process(sum(process.own for process in found), sum((process.threads for process in found), Counter()))]
    return found


def _reckoning(configs: Sequence[BackendConfig]) -> str:
    workers = [worker for config in configs for worker in config.workers]
    runners = sum(worker.processes for worker in workers)
    runners += sum(len(config.dispatchers) + config.scheduler_needed for config in configs)
    threads = sum(worker.processes * worker.threads for worker in workers)
    databases = ", ".join(map(repr, _databases_on_server(configs[0])))
    return (
        f"1 for each of {len(configs)} supervisors, {_OWN} for each of {runners} runners, and 1 for each of"
        f" {threads} threads and each database there ({databases})"
    )


def _databases_used(config: BackendConfig) -> list[str]:
    """Those that a task's thread may connect to: all of the project."""
    return sorted({config.database_alias, *settings.DATABASES})


def _databases_on_server(config: BackendConfig) -> list[str]:
    server = _server(config.database_alias)
    return [database for database in _databases_used(config) if _server(database) == server]


def _server(database: str) -> tuple[Any, ...]:
    given = settings.DATABASES.get(database, {})
    return tuple(given.get(key) or "" for key in ("ENGINE", "HOST", "PORT"))


def _pooled(database: str, need: int) -> int:
    pool = _pool(database)
    return max(pool[0], min(need, pool[1])) if pool else need


def _pool(database: str) -> tuple[int, int] | None:
    """The least and the most that Django's pool of a database holds, if it has one."""
    pool = (settings.DATABASES.get(database, {}).get("OPTIONS") or {}).get("pool")
    if not pool:
        return None
    options: Mapping[str, Any] = pool if isinstance(pool, Mapping) else {}
    least = options.get("min_size", _POOL_MIN)
    return least, max(least, options.get("max_size") or least)
