"""The project around every example: settings, a fresh database, a real runtime.

The database is a SQLite file that is gone afterwards; `DJ_QUEUE_EXAMPLES_DATABASE` may hold an entry of
`DATABASES` as JSON instead. An example that shows a queue database sets `DJ_QUEUE_EXAMPLES_QUEUE_DATABASE`: that is
then a second SQLite file, or an entry as JSON. One that shows several backends names the others, as JSON, in
`DJ_QUEUE_EXAMPLES_TASKS`.
"""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import django
from django.conf import settings
from django.core.management import call_command

FOLDER = Path(__file__).parent


def _databases() -> dict[str, Any]:
    databases = {"default": _database("DJ_QUEUE_EXAMPLES_DATABASE")}
    if os.environ.get("DJ_QUEUE_EXAMPLES_QUEUE_DATABASE"):
        databases["queue"] = _database("DJ_QUEUE_EXAMPLES_QUEUE_DATABASE")
    return databases


def _options(databases: dict[str, Any]) -> dict[str, Any]:
    options = _given("DJ_QUEUE_EXAMPLES_OPTIONS")
    return {"database_alias": "queue", **options} if "queue" in databases else dict(options)


def _given(variable: str) -> Any:
    return json.loads(os.environ.get(variable, "{}"))


def _database(variable: str) -> dict[str, Any]:
    given = os.environ.get(variable, "")
    if given.startswith("{"):
        return dict(json.loads(given))
    folder = tempfile.mkdtemp(prefix="dj-queue-example-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(Path(folder) / "example.sqlite3"),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
    os.environ[variable] = json.dumps(database)  # for the runtime
    return database


def setup() -> None:
    """What manage.py does: configure Django. Both the example and its runtime call this."""
    databases = _databases()
    settings.configure(
        SECRET_KEY="examples",
        ALLOWED_HOSTS=["127.0.0.1"],
        USE_TZ=True,
        INSTALLED_APPS=["django.contrib.contenttypes", "dj_queue", *_given("DJ_QUEUE_EXAMPLES_APPS")],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        DATABASES=databases,
        ROOT_URLCONF="urls",
        DATABASE_ROUTERS=["dj_queue.routers.DjQueueRouter"],
        TASKS={
            "default": {
                "BACKEND": "dj_queue.backend.DjQueueBackend",
                "QUEUES": [],
                "OPTIONS": _options(databases),
            },
            **_given("DJ_QUEUE_EXAMPLES_TASKS"),
        },
        # The examples print failures themselves.
        LOGGING={"version": 1, "disable_existing_loggers": False, "loggers": {"django.tasks": {"level": "CRITICAL"}}},
    )
    django.setup()


@contextmanager
def runtime(*arguments: str, app: str | None = None, **options: Any) -> Iterator[None]:
    """Run `manage.py dj_queue` in a process of its own, with these options, until the block ends.

    `app` is one more of its `INSTALLED_APPS`: an example that registers hooks.
    """
    environment = {
        **os.environ,
        "DJ_QUEUE_EXAMPLES_OPTIONS": json.dumps(options),
        "DJ_QUEUE_EXAMPLES_APPS": json.dumps([app] if app else []),
    }
    process = subprocess.Popen(
        [sys.executable, __file__, "dj_queue", *arguments], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(15)


@contextmanager
def serve(server: str, *arguments: str) -> Iterator[str]:
    """Run a web server in a process of its own until the block ends; its arguments may name the `{port}`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", server, *(argument.format(port=port) for argument in arguments)]
    process = subprocess.Popen(command, cwd=FOLDER)
    try:
        wait_for(lambda: process.poll() is not None or _answers(port))
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(15)


def shared_file() -> Path:
    """A file, empty at first, for the example and the processes of its runtime."""
    if "DJ_QUEUE_EXAMPLES_FILE" not in os.environ:
        handle, os.environ["DJ_QUEUE_EXAMPLES_FILE"] = tempfile.mkstemp(prefix="dj-queue-example-")
        os.close(handle)
        atexit.register(os.unlink, os.environ["DJ_QUEUE_EXAMPLES_FILE"])
    return Path(os.environ["DJ_QUEUE_EXAMPLES_FILE"])


def get(url: str) -> str:
    with urlopen(url, timeout=20) as response:
        return str(response.read().decode())


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until the condition is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} seconds")
        time.sleep(0.05)
    return value


def wait_until_finished(*results: Any) -> None:
    """Refresh the results until all have finished."""

    def finished() -> bool:
        for result in results:
            if not result.is_finished:
                result.refresh()
        return all(result.is_finished for result in results)

    wait_for(finished)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# In the runtime this file is the main module. An example that it imports finds it under its own name, too.
sys.modules.setdefault("project", sys.modules[__name__])
setup()
if __name__ == "__main__":
    call_command(*sys.argv[1:])
elif "DJ_QUEUE_EXAMPLES_MIGRATED" not in os.environ:
    os.environ["DJ_QUEUE_EXAMPLES_MIGRATED"] = "1"
    call_command("migrate", verbosity=0)
