"""The YAML files of docs/configuration.md, whole, through the reader that `manage.py dj_queue --config` uses."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import CommandError, call_command

from dj_queue.config import (
    BackendConfig,
    DispatcherConfig,
    Overrides,
    RecurringConfig,
    SchedulerConfig,
    WorkerConfig,
    load_config,
)
from dj_queue.config.options import DISPATCHER, OPTIONS, SCHEDULER, WORKER

pytestmark = pytest.mark.once  # no database has a part in it, nor any version of Python

DOCS = Path(__file__).parent.parent / "docs"
FLAT, BACKENDS = re.findall(r"^```yaml\n(.*?)```", (DOCS / "configuration.md").read_text(), re.DOTALL | re.MULTILINE)
TASKS = {
    "default": {"BACKEND": "dj_queue.backend.DjQueueBackend", "OPTIONS": {"workers": {"threads": 50}}},
    "critical": {"BACKEND": "dj_queue.backend.DjQueueBackend", "OPTIONS": {"shutdown_timeout": 77}},
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Read a file, in a project that has the databases and the callback that the page names."""
    for name in ("queue", "direct"):
        monkeypatch.setitem(settings.DATABASES, name, settings.DATABASES["default"])
    callback = ModuleType("myapp.queue")
    callback.report_runtime_error = print  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "myapp", ModuleType("myapp"))
    monkeypatch.setitem(sys.modules, "myapp.queue", callback)

    def read(content: str, alias: str = "default", *, variable: bool = False) -> BackendConfig:
        file = tmp_path / "dj_queue.yml"
        file.write_text(content)
        env = {"DJ_QUEUE_CONFIG": str(file)} if variable else {}
        overrides = Overrides() if variable else Overrides(config_file=str(file))
        return load_config(alias, tasks=TASKS, overrides=overrides, env=env)

    return read


def test_the_flat_file_has_every_option() -> None:
    content = yaml.safe_load(FLAT)
    assert set(content) == set(OPTIONS)
    assert set(content["workers"][0]) == set(WORKER)
    assert set(content["dispatchers"][0]) == set(DISPATCHER)
    assert set(content["scheduler"]) == set(SCHEDULER)
    assert {"key", *content["recurring"]["nightly_cleanup"]} == {field.name for field in fields(RecurringConfig)}


@pytest.mark.parametrize("variable", [False, True])
def test_what_the_flat_file_means(load: Any, variable: bool) -> None:
    config = load(FLAT, variable=variable)
    assert (config.mode, config.database_alias, config.listen_database_alias) == ("fork", "queue", "direct")
    assert config.workers == (
        WorkerConfig(("critical", "email*"), 8, 2, 0.1, recycle_after_jobs=10_000, recycle_above_mib=512),
        WorkerConfig(("*",), 3),
    )
    assert config.dispatchers == (DispatcherConfig(500, 1, True, 600),)
    assert config.scheduler == SchedulerConfig(dynamic_tasks_enabled=True, polling_interval=5)
    (cleanup,) = config.recurring
    assert (cleanup.key, cleanup.task_path, cleanup.schedule) == ("nightly_cleanup", "myapp.tasks.cleanup", "0 3 * * *")
    assert (cleanup.args, cleanup.kwargs, cleanup.timezone) == ((30,), {"dry_run": False}, "Europe/Berlin")
    assert (config.shutdown_timeout, config.supervisor_pidfile) == (30, "/run/dj_queue.pid")
    assert (config.clear_failed_jobs_after, config.clear_recurring_executions_after) == (1209600, None)
    assert config.on_thread_error == "myapp.queue.report_runtime_error"


def test_what_the_file_with_backends_means(load: Any) -> None:
    usual, critical = load(BACKENDS), load(BACKENDS, "critical")
    assert (usual.mode, usual.database_alias) == ("async", "default")
    assert usual.workers == (WorkerConfig(("default", "email*"), 8, polling_interval=0.1),)
    assert (critical.mode, critical.database_alias) == ("fork", "queue")
    assert critical.workers == (WorkerConfig(("alerts", "critical-review"), 2, 2, 0.05),)
    assert critical.dispatchers == (DispatcherConfig(polling_interval=0.5),)
    assert critical.clear_finished_jobs_after is None
    assert critical.shutdown_timeout == 77, "what the file does not say keeps its setting"


def test_the_variables_of_the_page(load: Any) -> None:
    page = (DOCS / "configuration.md").read_text()
    for name in ("DJ_QUEUE_MODE", "DJ_QUEUE_SKIP_RECURRING", "DJ_QUEUE_CONFIG"):
        assert f"{name}=" in page
    config = load_config(tasks=TASKS, env={"DJ_QUEUE_MODE": "async", "DJ_QUEUE_SKIP_RECURRING": "1"})
    assert (config.mode, config.scheduler_needed) == ("async", False)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_commands_of_the_pages_have_these_flags(page: str) -> None:
    """Every `manage.py dj_queue...` in a block is one that the command's parser takes."""
    blocks = re.findall(r"^```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    for name, flags in re.findall(r"python manage\.py (dj_queue\w*)([^\n#]*)", "\n".join(blocks)):
        with pytest.raises(CommandError, match="no-such-flag"):
            call_command(name, *flags.split(), "--no-such-flag")


def test_what_the_flags_start() -> None:
    """The table in docs/topology.md."""
    table = re.findall(
        r"^\| (none|`--[\w-]+`) \| (yes|no) \| (yes|no) \| (\w+)", (DOCS / "topology.md").read_text(), re.MULTILINE
    )
    flags = {"none": {}, "`--only-work`": {"only_work": True}, "`--only-dispatch`": {"only_dispatch": True}}
    flags["`--skip-recurring`"] = {"skip_recurring": True}
    assert [row[0] for row in table] == list(flags)
    for name, *said in table:
        config = load_config(tasks=TASKS, overrides=Overrides(**flags[name]), env={})
        starts = [bool(config.workers), bool(config.dispatchers), config.scheduler_needed]
        assert [word in ("yes", "if") for word in said] == starts, name
