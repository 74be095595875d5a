"""The database under test, real runtimes, and waiting."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import databases
from tests.starter import Started, Starter, can_start

ROOT = Path(__file__).parent.parent

# What is in there needs wheels alone: see tox.ini.
collect_ignore = ["wheels"]


# Hundreds of processes import the same here: where no compiled files are wanted beside the sources, they are kept
# elsewhere, and nobody compiles all of Django each time.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".cache" / "bytecode"))


def pytest_configure(config: pytest.Config) -> None:
    import dj_queue

    installed = os.environ.get("DJ_QUEUE_TEST_INSTALLED")
    if installed and not Path(dj_queue.__file__).is_relative_to(installed):
        raise pytest.UsageError(f"not the installed wheel is under test, but {dj_queue.__file__}")
    # A cancelled CI run sends SIGTERM: leave by the front door, so that the suite's own server ends too.
    if not hasattr(config, "workerinput"):
        signal.signal(signal.SIGTERM, lambda *_: pytest.exit("SIGTERM", returncode=128 + signal.SIGTERM))
        # A shell has what it runs in the background ignore these, and so would every process that a test starts.
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests import scheduling

    return scheduling.make(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from tests import scheduling

        scheduling.sort(items)
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "browser" in fixtures or "embedding" in item.path.parts:
            item.add_marker("once")
        waiting = {"runtime", "connections", "embedding", "test_examples.py", "test_readme.py"}
        if "runtime" in fixtures or waiting.intersection(item.path.parts):
            item.add_marker("processes")


def pytest_report_header() -> list[str]:
    import django

    import dj_queue

    python = ".".join(map(str, sys.version_info[:3]))
    package = Path(dj_queue.__file__).parent
    return [f"database under test: {databases.VENDOR}", f"Python {python}, Django {django.__version__}, {package}"]


@pytest.fixture(scope="session", autouse=True)
def _cheap_flushes() -> Iterator[None]:
    from django.test import TransactionTestCase

    from tests import flush

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", flush.teardown)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    from tests import features  # needs the settings

    for marker in item.iter_markers("needs"):
        for feature in marker.args:
            if reason := features.missing(feature):
                pytest.skip(reason)


def pytest_runtest_teardown() -> None:
    from django.db import connections

    # A runner that a test has run in this process has silenced its connection, for what follows too.
    for connection in connections.all(initialized_only=True):
        vars(connection).pop("make_debug_cursor", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # Tests log lone surrogates on purpose, and pytest-xdist cannot send them.
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def wait_until(condition: Callable[[], Any], *, seconds: float = 20, what: str = "") -> Any:
    """Wait until the condition is true and return its value."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what or condition}", pytrace=True)
        time.sleep(pause)
        pause = min(0.04, 1.2 * pause)  # asking is work, too, beside what is waited for
    return value


class Runtime:
    """A real `manage.py dj_queue` on the test's database, in a process group of its own."""

    def __init__(
        self, *arguments: str, options: dict[str, Any], environment: dict[str, str], starter: Starter | None = None
    ) -> None:
        env = {
            **os.environ,
            **_settings_of_processes(),
            "DJ_QUEUE_TEST_OPTIONS": json.dumps(options),
            "PYTHONUNBUFFERED": "1",
            **environment,
        }
        self.process: Started | subprocess.Popen[bytes]
        with tempfile.NamedTemporaryFile(prefix="dj-queue-runtime-", delete=False) as log:
            self.log = Path(log.name)
            if starter is not None and can_start(env):
                self.process = starter.start("django", "dj_queue", *arguments, env=env, output=log.fileno())
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "django", "dj_queue", *arguments],
                    env=env,
                    cwd=ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_ready(self, *, rows: int = 1) -> None:
        """Wait until the supervisor's row and so many runners' rows are there."""
        from dj_queue.models import Process

        def there() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the runtime ended with {self.process.returncode}:\n{self.output}")
            supervisor = Process.objects.filter(pid=self.pid, kind="Supervisor").first()
            if supervisor is None:
                return False
            told = supervisor.metadata
            planned = told["worker_count"] + told["dispatcher_count"] + told["has_scheduler"]
            # More than one: all of them, as nobody knows which come first.
            return Process.objects.filter(supervisor=supervisor).count() >= (max(rows, planned) if rows > 1 else rows)

        wait_until(there, what=f"runtime ready with {rows} runners:\n{self.output}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        """Wait for the end; return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the runtime did not end within {seconds} s:\n{self.output}")

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """End every process of the group, whatever state it is in."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.log.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def starter(django_db_setup: None) -> Iterator[Starter]:
    starter = Starter(_settings_of_processes())
    yield starter
    starter.close()


@pytest.fixture
def runtime(request: Any, transactional_db: None) -> Iterator[Callable[..., Runtime]]:
    """Start runtimes: `runtime("--mode", "async", options={...})`."""
    executed = request.node.get_closest_marker("executed")
    starter = None if executed else request.getfixturevalue("starter")
    started: list[Runtime] = []

    def start(
        *arguments: str,
        options: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        rows: int | None = 1,
    ) -> Runtime:
        running = Runtime(*arguments, options=options or {}, environment=environment or {}, starter=starter)
        started.append(running)
        if rows is not None:
            running.wait_ready(rows=rows)
        return running

    yield start
    for running in started:
        running.close()


def _settings_of_processes() -> dict[str, str]:
    from django.db import connection

    return {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "DJ_QUEUE_TEST_DATABASE": json.dumps(_plain(connection.settings_dict)),
    }


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """A connection's settings as JSON holds them."""
    return {key: value for key, value in settings.items() if key != "TEST"}


# ---- for tests of the runtime -----------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether the process runs: neither gone nor waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def lines(path: Path) -> list[str]:
    """What tasks have left in a file so far."""
    return path.read_text().splitlines() if path.exists() else []


def pid_of(name: str) -> int:
    """The pid in the newest process row of that name; 0 if there is none."""
    from dj_queue.models import Process

    return Process.objects.filter(name=name).order_by("-pk").values_list("pid", flat=True).first() or 0


def wait_settled(*, seconds: float = 30) -> None:
    """Wait until every job is finished or failed; check that none is in two states."""
    from dj_queue.models import ClaimedExecution, Job, ReadyExecution
    from tests.working import states

    wait_until(
        lambda: not Job.objects.filter(finished_at=None, failed_execution=None).exists(),
        seconds=seconds,
        what="every job finished or failed",
    )
    states()
    assert not ClaimedExecution.objects.exists()
    assert not ReadyExecution.objects.exists()


class Counts(dict[str, int]):
    """What became of the jobs of a scenario, for the record: pytest shows it with -rP or -s."""

    def __init__(self, scenario: str, ran: Path, *runtimes: Runtime) -> None:
        from dj_queue.models import Job

        written = lines(ran)
        claims = sum(runtime.output.splitlines().count("job.claimed") for runtime in runtimes)
        super().__init__(
            jobs=Job.objects.count(),
            finished=Job.objects.finished().count(),
            failed=Job.objects.failed().count(),
            # By the log, of which a killed process may not have written its last line.
            given_back=max(0, claims - Job.objects.count()),
            doubled=len(written) - len(set(written)),
        )
        print(f"{scenario} [{databases.VENDOR}]: " + ", ".join(f"{n} {word}" for word, n in self.items()))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file in which tasks leave a line each; `lines(ran)` reads it."""
    return tmp_path / "ran"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The file for which tasks wait; what waits has made another one, whose name ends in `.started`."""
    return tmp_path / "release"


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Make a project around the test's: `runtime(environment=project(code))`.

    `code` runs once the apps are ready, `settings` at the end of the settings. Events, with their
    fields, go to `tmp_path / "events"` as JSON.
    """

    def make(code: str = "", settings: str = "") -> dict[str, str]:
        folder = tmp_path / "project"
        (folder / "around").mkdir(parents=True)
        (folder / "around" / "__init__.py").touch()
        (folder / "around" / "setup.py").write_text(code)
        (folder / "around" / "apps.py").write_text(_AROUND_APP)
        (folder / "around_settings.py").write_text(_AROUND_SETTINGS.format(events=str(tmp_path / "events")) + settings)
        return {"DJANGO_SETTINGS_MODULE": "around_settings", "PYTHONPATH": str(folder)}

    return make


_AROUND_APP = """
from django.apps import AppConfig


class AroundConfig(AppConfig):
    name = "around"

    def ready(self):
        from around import setup
"""

_AROUND_SETTINGS = """
import json
import logging

from tests.settings import *


class Fields(logging.Formatter):
    def format(self, record):
        standard = vars(logging.makeLogRecord({{}}))
        extra = {{key: value for key, value in vars(record).items() if key not in standard}}
        return json.dumps(
            {{"message": record.getMessage(), "level": record.levelname, "extra": extra}}, default=str
        )


INSTALLED_APPS = [*INSTALLED_APPS, "around"]
LOGGING = {{
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {{"fields": {{"()": Fields}}}},
    "handlers": {{
        "console": {{"class": "logging.StreamHandler"}},
        "events": {{"class": "logging.FileHandler", "filename": {events!r}, "formatter": "fields"}},
    }},
    "loggers": {{"dj_queue": {{"handlers": ["console", "events"], "level": "INFO"}}}},
}}
"""
