"""What `manage.py check` says about dj-queue.

    dj_queue.E001  The configuration of an alias has mistakes.
    dj_queue.E002  A queue lives on another database than "default", and no router sends it there.
    dj_queue.E003  An installed dj-queue distribution owns the same files as dj-queue-core.
    dj_queue.E004  A queue's database is none that dj-queue can use, or lacks its driver.
    dj_queue.E005  The token that protects `dj_queue.urls` is not a text, or has blanks at its ends.
    dj_queue.E006  A queue's database has the tables of dj-queue 0.6.
    dj_queue.W001  A queue lives on SQLite without the settings that keep writers from failing.
    dj_queue.W002  An earlier router answers for dj-queue's tables.
    dj_queue.W003  The configured processes may open more connections than the server allows.
    dj_queue.W004  A process may need more connections than Django's pool holds.
    dj_queue.W005  DJ_QUEUE_CONFIG names a file for one alias, and there are several.
    dj_queue.W006  The driver of a queue's database does not wake idle workers.
    dj_queue.W007  The app is installed, and no alias of TASKS is dj-queue's.
    dj_queue.W008  A recurring task of the settings cannot be imported.
    dj_queue.W009  Each tenant's schema has queue tables of its own, where no worker looks.
    dj_queue.W010  The addresses of `dj_queue.urls` are open to everybody. With `--deploy` alone.

`manage.py check --tag dj_queue` runs these alone. E006 and W003 open a connection, so a plain `manage.py check` leaves
them out: they come with `--database default`, and before `migrate`.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, Error, router
from django.urls import get_resolver

from dj_queue.config import (
    BACKEND_PATH,
    TOKEN_SETTING,
    BackendConfig,
    database_aliases,
    flat_file,
    managed_aliases,
    observability_token,
    process_config,
    usual_alias,
)
from dj_queue.dialects import dialect_for, has_schemas
from dj_queue.exceptions import TaskPathError
from dj_queue.runtime import connection_budget

TAG = "dj_queue"

_ROUTER = "dj_queue.routers.DjQueueRouter"
_PREDECESSOR = "dj-queue"
_SQLITE_ENGINES = (
    "django.db.backends.sqlite3",
    "django.contrib.gis.db.backends.spatialite",
)
_WAL = re.compile(r"\bjournal_mode\s*[=(]\s*['\"]?wal\b", re.IGNORECASE)


def register() -> None:
    """Add all checks to Django's. `AppConfig.ready()` calls this."""
    for check in (
        check_configuration,
        check_aliases,
        check_flat_file,
        check_router,
        check_databases,
        check_drivers,
        check_distributions,
        check_sqlite,
        check_pools,
        check_observability_token,
        check_tenants,
        check_recurring_tasks,
    ):
        checks.register(check, TAG)
    checks.register(deployed_openly, TAG, checks.Tags.security, deploy=True)
    checks.register(check_predecessor, TAG, checks.Tags.database)
    checks.register(check_connections, TAG, checks.Tags.database)


def check_configuration(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for alias in managed_aliases():
        try:
            process_config(alias)
        except ImproperlyConfigured as error:
            hint = f"Until then, enqueueing on {alias!r} and `manage.py dj_queue` raise this error."
            found.append(checks.Error(str(error), hint=hint, id="dj_queue.E001"))
    return found


def check_aliases(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    if managed_aliases():
        return []
    return [
        checks.Warning(
            "dj_queue is in INSTALLED_APPS, and no alias of TASKS has its backend: nothing is enqueued there.",
            hint=f'Set TASKS["default"]["BACKEND"] to "{BACKEND_PATH}", or remove dj_queue from INSTALLED_APPS.',
            id="dj_queue.W007",
        )
    ]


def check_flat_file(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    aliases = managed_aliases()
    file = flat_file()
    if file is None or len(aliases) < 2:
        return []
    usual = usual_alias()
    whose = f"to {usual!r} alone" if usual else "to none of them"
    return [
        checks.Warning(
            f"DJ_QUEUE_CONFIG names {file!r}, whose options are for one alias, and TASKS gives dj-queue"
            f" {_quoted(aliases)}. Processes that are not told an alias apply it {whose};"
            " `manage.py dj_queue --backend ALIAS` applies it to that one.",
            hint="Put the options below `backends:` and the name of their alias, so that all processes agree.",
            id="dj_queue.W005",
        )
    ]


def check_router(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    databases = database_aliases()
    elsewhere = sorted(databases - {DEFAULT_DB_ALIAS})
    if not elsewhere:
        return []
    if not any(map(_is_our_router, router.routers)):
        return [
            checks.Error(
                f"TASKS puts queue tables on {_quoted(elsewhere)}, but DATABASE_ROUTERS does not "
                "name dj-queue's router, so their queries and migrations go to 'default'.",
                hint=f'Add "{_ROUTER}" to the start of DATABASE_ROUTERS.',
                id="dj_queue.E002",
            )
        ]
    from dj_queue.models import Job

    answers = {router.db_for_read(Job), router.db_for_write(Job)}
    strangers = sorted(answers - databases)
    if not strangers:
        return []
    return [
        checks.Warning(
            f"DATABASE_ROUTERS sends queries of dj-queue's tables to {_quoted(strangers)}, where "
            f"no queue lives. TASKS names {_quoted(sorted(databases))}.",
            hint=f'Move "{_ROUTER}" to the start of DATABASE_ROUTERS.',
            id="dj_queue.W002",
        )
    ]


def check_tenants(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    # As django-tenants has it: apps with tables in the schema that all share, and in each tenant's.
    shared, own = (getattr(settings, name, ()) for name in ("SHARED_APPS", "TENANT_APPS"))
    databases = sorted(filter(has_schemas, database_aliases()))
    in_own, in_shared = _names_us(own), _names_us(shared)
    if not databases or (in_shared and not in_own):
        return []
    where = "in TENANT_APPS" if in_own else "in neither SHARED_APPS nor TENANT_APPS"
    return [
        checks.Warning(
            f"dj_queue is {where}, and {_quoted(databases)} has a schema for each tenant: jobs enqueued in a"
            " tenant's schema are stored there, and workers look only into the shared one.",
            hint='Put "dj_queue" into SHARED_APPS alone, and run `manage.py migrate_schemas --shared`.',
            id="dj_queue.W009",
        )
    ]


def _names_us(apps: Iterable[str]) -> bool:
    return any(app == "dj_queue" or app.startswith("dj_queue.apps.") for app in apps)


def check_recurring_tasks(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    from dj_queue.operations import results

    found: list[CheckMessage] = []
    for config in _readable():
        for task in config.recurring:
            try:
                results.resolve(task.task_path)
            except TaskPathError as error:
                found.append(
                    checks.Warning(
                        f"The recurring task {task.key!r} of {config.alias!r} cannot be enqueued: {error}",
                        hint=f'Correct its task_path in TASKS["{config.alias}"]["OPTIONS"]["recurring"].',
                        id="dj_queue.W008",
                    )
                )
    return found


def check_databases(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    from dj_queue.operations import schema

    found: list[CheckMessage] = []
    for alias in sorted(database_aliases()):
        try:
            schema.require_usable(alias)
        except ImproperlyConfigured as error:
            hint = "Until then, `manage.py dj_queue` raises this error."
            found.append(checks.Error(str(error), hint=hint, id="dj_queue.E004"))
    return found


def check_drivers(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for config in _readable():
        with suppress(ImproperlyConfigured):  # `check_databases` says it
            reason = dialect_for(config.database_alias).deaf() if config.listen_notify else None
            if reason:
                said, _, command = reason.partition(". ")
                found.append(
                    checks.Warning(
                        f"Workers of {config.alias!r} poll for new work, at most every `polling_interval`, and are not"
                        f" woken by it: {said}. Enqueueing and running work.",
                        hint=f"{command}, or set the option listen_notify to False.",
                        id="dj_queue.W006",
                    )
                )
    return found


def check_distributions(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    # One lookup by name. Asking which distributions own a package would read them all.
    try:
        predecessor = metadata.distribution(_PREDECESSOR)
    except metadata.PackageNotFoundError:
        return []
    files = predecessor.files
    if files is not None and not any(file.parts[0] == "dj_queue" for file in files):
        return []
    return [
        checks.Error(
            f"The distribution {_PREDECESSOR} {predecessor.version} is installed beside "
            "dj-queue-core. Both own the package dj_queue, so its files are a mixture of the two.",
            # Uninstalling takes the shared files along, so core has to be put back.
            hint=(f"Run `pip uninstall {_PREDECESSOR}`, then `pip install --force-reinstall --no-deps dj-queue-core`."),
            id="dj_queue.E003",
        )
    ]


def check_sqlite(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    return [
        checks.Warning(
            f"A queue lives on the SQLite database {alias!r} without {' and '.join(missing)}: "
            "processes that write at the same time then fail with 'database is locked'.",
            hint=(
                f'Set DATABASES["{alias}"]["OPTIONS"] to {{"transaction_mode": "IMMEDIATE", '
                '"init_command": "PRAGMA journal_mode=WAL", ...}.'
            ),
            id="dj_queue.W001",
        )
        for alias in sorted(database_aliases())
        if (missing := _missing_on_sqlite(settings.DATABASES.get(alias, {})))
    ]


def check_pools(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    return [
        checks.Warning(shortage.message, hint=shortage.hint, id="dj_queue.W004")
        for config in _readable()
        for shortage in connection_budget.pool_shortages(config)
    ]


def check_predecessor(
    app_configs: object = None, *, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    from dj_queue.operations import schema

    found: list[CheckMessage] = []
    for alias in sorted({config.database_alias for config in _readable()} & set(databases or ())):
        # Other checks report a server that does not answer or cannot be asked.
        with suppress(Error, ImproperlyConfigured):
            if old := schema.predecessor(alias):
                hint = "With this version installed, the same command drops them given --skip-checks."
                found.append(checks.Error(f"{old}.", hint=hint, id="dj_queue.E006"))
    return found


def check_connections(
    app_configs: object = None, *, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    left = [config for config in _readable() if config.database_alias in (databases or ())]
    while left:
        together = [config for config in left if connection_budget.same_server(left[0], config)]
        left = [config for config in left if config not in together]
        # Other checks report a server that does not answer or cannot be asked.
        with suppress(Error, ImproperlyConfigured):
            shortage = connection_budget.server_shortage(together)
            if shortage:
                found.append(checks.Warning(shortage.message, hint=shortage.hint, id="dj_queue.W003"))
    return found


def _readable() -> list[BackendConfig]:
    """The configurations without mistakes: the others are `check_configuration`'s to judge."""
    found = []
    for alias in managed_aliases():
        with suppress(ImproperlyConfigured):
            found.append(process_config(alias))
    return found


def check_observability_token(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    try:
        observability_token()
    except ImproperlyConfigured as error:
        hint = "Until then, stats.json, metrics and health/ready raise this error."
        return [checks.Error(str(error), hint=hint, id="dj_queue.E005")]
    return []


def deployed_openly(app_configs: object = None, **kwargs: Any) -> list[CheckMessage]:
    with suppress(ImproperlyConfigured):  # which E005 tells
        if observability_token() is None and _is_routed():
            return [
                checks.Warning(
                    "stats.json, metrics and health/ready of dj_queue.urls are open to everybody who reaches this site:"
                    " they tell of queues, tasks, hosts and concurrency keys.",
                    hint=f"Set {TOKEN_SETTING}, or let the network keep others out, and silence dj_queue.W010.",
                    id="dj_queue.W010",
                )
            ]
    return []


def _is_routed() -> bool:
    """Whether the site's addresses include ours."""
    if not getattr(settings, "ROOT_URLCONF", None):
        return False
    stack: list[Any] = [get_resolver()]
    while stack:
        resolver = stack.pop()
        if getattr(resolver, "app_name", None) == "dj_queue":
            return True
        stack += [each for each in resolver.url_patterns if hasattr(each, "url_patterns")]
    return False


def _missing_on_sqlite(database: Mapping[str, Any]) -> list[str]:
    name = str(database.get("NAME", ""))
    if database.get("ENGINE") not in _SQLITE_ENGINES:
        return []
    if ":memory:" in name or "mode=memory" in name:
        return []  # It dies with its process: no other process writes to it.
    options = database.get("OPTIONS", {})
    missing = []
    if not _WAL.search(options.get("init_command") or ""):
        missing.append("WAL")
    if (options.get("transaction_mode") or "").upper() != "IMMEDIATE":
        missing.append("immediate transactions")
    return missing


def _is_our_router(candidate: object) -> bool:
    # By name: routers sit above this module, and a project may well subclass ours.
    return any(f"{cls.__module__}.{cls.__qualname__}" == _ROUTER for cls in type(candidate).__mro__)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
