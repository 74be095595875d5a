"""Configuration: sources, precedence, and every mistake named where it was made."""

import os
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from dj_queue import config
from dj_queue.config import (
    BACKEND_PATH,
    BackendConfig,
    DispatcherConfig,
    Overrides,
    RecurringConfig,
    SchedulerConfig,
    WorkerConfig,
    activate,
    backend_config,
    database_aliases,
    load_config,
    managed_aliases,
)

pytestmark = pytest.mark.pure  # no database has a part in it

HUNDRED_YEARS = 100 * 365 * 86400
OURS = {"BACKEND": BACKEND_PATH}
FOREIGN = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}
HOME = 'TASKS["default"]["OPTIONS"]'

NIGHTLY = {"task_path": "app.tasks.clean", "schedule": "0 3 * * *"}

not_callable = "text"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("DJ_QUEUE_CONFIG", "DJ_QUEUE_MODE", "DJ_QUEUE_SKIP_RECURRING"):
        monkeypatch.delenv(name, raising=False)
    for name in ("elsewhere", "third"):
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        monkeypatch.setitem(settings.DATABASES, name, database)
    config.reset()
    yield
    config.reset()


@pytest.fixture
def yaml_file(tmp_path):
    def write(content, name="queue.yml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def tasks(options, **others):
    return {"default": {**OURS, "OPTIONS": options}, **others}


def load(options=None, *, env=None, **overrides):
    return load_config(tasks=tasks(options or {}), env=env or {}, overrides=Overrides(**overrides))


def mistakes(options=None, *, env=None, alias="default", others=None, **overrides):
    """The lines of the refusal, without its first and last."""
    with pytest.raises(ImproperlyConfigured) as caught:
        load_config(
            alias,
            tasks=tasks({} if options is None else options, **(others or {})),
            env=env or {},
            overrides=Overrides(**overrides),
        )
    first, *lines, last = str(caught.value).splitlines()
    assert first == (
        f"dj-queue cannot use the configuration of {alias!r} ({len(lines)} mistake{'s' if len(lines) > 1 else ''}):"
    )
    assert last == "Correct each line above, then verify with `python manage.py check`."
    assert all(line.startswith("  ") for line in lines)
    return [line[2:] for line in lines]


# Defaults and accepted values


def test_defaults_are_those_of_the_contract():
    found = load()
    assert found == BackendConfig(
        alias="default",
        database_alias="default",
        mode="fork",
        workers=(WorkerConfig(("*",), threads=3, processes=1, polling_interval=0.1),),
        dispatchers=(
            DispatcherConfig(
                batch_size=500,
                polling_interval=1,
                concurrency_maintenance=True,
                concurrency_maintenance_interval=600,
            ),
        ),
        scheduler=SchedulerConfig(dynamic_tasks_enabled=False, polling_interval=5),
        recurring=(),
        process_heartbeat_interval=60,
        process_alive_threshold=300,
        shutdown_timeout=5,
        supervisor_pidfile=None,
        preserve_finished_jobs=True,
        clear_finished_jobs_after=86400,
        clear_failed_jobs_after=None,
        clear_recurring_executions_after=None,
        default_concurrency_duration=180,
        use_skip_locked=True,
        listen_notify=True,
        listen_database_alias=None,
        silence_polling=True,
        on_thread_error=None,
        skip_recurring=False,
        config_file=None,
    )


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (WorkerConfig(), "threads"),
        (DispatcherConfig(), "batch_size"),
        (SchedulerConfig(), "polling_interval"),
        (RecurringConfig("key", "a.b", "@daily"), "key"),
        (BackendConfig("default"), "mode"),
        (Overrides(), "mode"),
    ],
)
def test_a_configuration_is_frozen_and_slotted(part, field):
    with pytest.raises(FrozenInstanceError):
        setattr(part, field, None)
    assert not hasattr(part, "__dict__")


def test_a_configuration_made_by_hand_starts_what_the_default_does():
    assert BackendConfig("default") == load()


def test_recurring_defaults():
    (task,) = load({"recurring": {"nightly": NIGHTLY}}).recurring
    assert task == RecurringConfig(
        key="nightly",
        task_path="app.tasks.clean",
        schedule="0 3 * * *",
        args=(),
        kwargs={},
        queue_name="default",
        priority=0,
        description="",
        timezone=None,
    )


@pytest.mark.parametrize(
    ("option", "given", "expected"),
    [
        ("mode", "async", "async"),
        ("workers", {}, (WorkerConfig(),)),
        ("workers", [], ()),
        ("workers", ({"threads": 1}, {"threads": 2}), (WorkerConfig(threads=1), WorkerConfig(threads=2))),
        ("workers", {"queues": "*"}, (WorkerConfig(("*",)),)),
        ("workers", {"queues": []}, (WorkerConfig(("*",)),)),
        ("workers", {"queues": "mail*"}, (WorkerConfig(("mail*",)),)),
        ("workers", {"queues": ["b", "a*", "*"]}, (WorkerConfig(("b", "a*", "*")),)),
        ("workers", {"queues": "q" * 64}, (WorkerConfig(("q" * 64,)),)),
        ("workers", {"threads": 4.0}, (WorkerConfig(threads=4),)),
        ("workers", {"processes": 7}, (WorkerConfig(processes=7),)),
        ("workers", {"polling_interval": 2}, (WorkerConfig(polling_interval=2),)),
        ("dispatchers", {"batch_size": 1}, (DispatcherConfig(batch_size=1),)),
        (
            "dispatchers",
            [{"concurrency_maintenance": False, "concurrency_maintenance_interval": 0.5}],
            (DispatcherConfig(concurrency_maintenance=False, concurrency_maintenance_interval=0.5),),
        ),
        ("scheduler", {"dynamic_tasks_enabled": True}, SchedulerConfig(dynamic_tasks_enabled=True)),
        ("scheduler", {"polling_interval": 9}, SchedulerConfig(polling_interval=9)),
        (
            "recurring",
            {
                "k" * 255: {
                    "task_path": "a.b",
                    "schedule": "@daily",
                    "args": [1, {"a": None}],
                    "kwargs": {"b": [True]},
                    "queue_name": "q" * 64,
                    "priority": -100,
                    "description": "d",
                    "timezone": "Europe/Berlin",
                }
            },
            (
                RecurringConfig(
                    "k" * 255, "a.b", "@daily", (1, {"a": None}), {"b": [True]}, "q" * 64, -100, "d",
                    "Europe/Berlin",
                ),
            ),
        ),
        (
            "recurring",
            {"k": {"task_path": "a." + "b" * 253, "schedule": "@daily", "priority": 100}},
            (RecurringConfig("k", "a." + "b" * 253, "@daily", priority=100),),
        ),
        ("process_heartbeat_interval", 0.5, 0.5),
        ("process_alive_threshold", HUNDRED_YEARS, HUNDRED_YEARS),
        ("shutdown_timeout", 0, 0),
        ("supervisor_pidfile", "/run/q.pid", "/run/q.pid"),
        ("supervisor_pidfile", Path("/run/q.pid"), "/run/q.pid"),
        ("supervisor_pidfile", None, None),
        ("preserve_finished_jobs", False, False),
        ("clear_finished_jobs_after", None, None),
        ("clear_finished_jobs_after", 0, 0),
        ("clear_failed_jobs_after", 1.5, 1.5),
        ("clear_failed_jobs_after", HUNDRED_YEARS, HUNDRED_YEARS),
        ("clear_recurring_executions_after", 60, 60),
        ("default_concurrency_duration", 1, 1),
        ("database_alias", "elsewhere", "elsewhere"),
        ("listen_database_alias", "elsewhere", "elsewhere"),
        ("listen_database_alias", None, None),
        ("use_skip_locked", False, False),
        ("listen_notify", False, False),
        ("silence_polling", False, False),
        ("on_thread_error", "os.path.join", "os.path.join"),
        ("on_thread_error", None, None),
    ],
)  # fmt: skip
def test_accepted_values(option, given, expected):
    found = load({option: given})
    assert getattr(found, option) == expected
    assert type(getattr(found, option)) is type(expected)
    # Nothing else moved.
    assert replace(found, **{option: getattr(load(), option)}) == load()


def test_every_option_of_the_table_is_a_field():
    from dj_queue.config.options import OPTIONS

    apart = {"alias", "skip_recurring", "config_file"}
    assert set(OPTIONS) == set(BackendConfig.__dataclass_fields__) - apart


# Mistakes: path, what was expected, what was given

WHOLE = "expected a whole number >= 1, got"
SECONDS = f"expected a number of seconds > 0 and at most {HUNDRED_YEARS} (100 years), got"
AGE = f"expected a number of seconds >= 0 and at most {HUNDRED_YEARS} (100 years), or None, got"
BOOLEAN = "expected True or False, got"
MAPPING = "expected a mapping of options, got"
SELECTOR = "expected a queue name, or the start of one and a final '*', of 1 to 64 characters, got"
CRON = "expected a cron expression such as '0 3 * * *', got"
DOTTED = "expected a dotted path such as 'myapp.tasks.cleanup', got"


def each(values, option, text):
    return [({option: value}, f'["{option}"]: {text} {value!r}') for value in values]


def each_in(values, outer, inner, text):
    return [({outer: {inner: value}}, f'["{outer}"]["{inner}"]: {text} {value!r}') for value in values]


def each_worker(values, inner, text):
    return [({"workers": [{}, {inner: value}]}, f'["workers"][1]["{inner}"]: {text} {value!r}') for value in values]


def each_recurring(values, inner, text, after=""):
    place = f'["recurring"]["nightly"]["{inner}"]'
    return [
        ({"recurring": {"nightly": {**NIGHTLY, inner: value}}}, f"{place}: {text} {value!r}{after}") for value in values
    ]


NOT_WHOLE = [True, False, 0, -1, 1.5, "3", None, float("nan"), float("inf")]
NOT_SECONDS = [True, 0, -1, "1", float("nan"), float("inf"), HUNDRED_YEARS + 1]
NOT_BOOLEAN = [0, 1, "true", None]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"mode": "Fork"}, '["mode"]: expected one of \'fork\', \'async\', got \'Fork\' (did you mean \'fork\'?)'),
        *each([None, ["fork"], "threads", True], "mode", "expected one of 'fork', 'async', got"),
        *each(["x", 3, None], "workers", "expected a mapping of options or a list of them, got"),
        ({"workers": [{}, 3]}, f'["workers"][1]: {MAPPING} 3'),
        *each_worker(NOT_WHOLE, "threads", WHOLE),
        *each_worker(NOT_WHOLE, "processes", WHOLE),
        *each_worker([*NOT_SECONDS, None], "polling_interval", SECONDS),
        *each_worker([7, None, {"a"}], "queues", "expected a queue selector or a list of them, got"),
        *each_worker(["", "a*b", "**", "*a", "q" * 65], "queues", SELECTOR),
        ({"workers": {"queues": ["a", 5]}}, f'["workers"]["queues"][1]: {SELECTOR} 5'),
        *each(["x", 3, None], "dispatchers", "expected a mapping of options or a list of them, got"),
        *each_in(NOT_WHOLE, "dispatchers", "batch_size", WHOLE),
        *each_in(NOT_SECONDS, "dispatchers", "polling_interval", SECONDS),
        *each_in(NOT_BOOLEAN, "dispatchers", "concurrency_maintenance", BOOLEAN),
        *each_in(NOT_SECONDS, "dispatchers", "concurrency_maintenance_interval", SECONDS),
        *each([None, [], "on"], "scheduler", MAPPING),
        *each_in(NOT_BOOLEAN, "scheduler", "dynamic_tasks_enabled", BOOLEAN),
        *each_in(NOT_SECONDS, "scheduler", "polling_interval", SECONDS),
        *each([None, [NIGHTLY]], "recurring", "expected a mapping from keys to recurring tasks, got"),
        ({"recurring": {"nightly": "x"}}, f'["recurring"]["nightly"]: {MAPPING} \'x\''),
        ({"recurring": {"": NIGHTLY}}, '["recurring"]: expected every key to be a non-empty string of at most 255 characters, got \'\''),
        ({"recurring": {7: NIGHTLY}}, '["recurring"]: expected every key to be a non-empty string of at most 255 characters, got 7'),
        ({"recurring": {"nightly": {"schedule": "@daily"}}}, '["recurring"]["nightly"]["task_path"]: expected a value, got nothing: it is required'),
        ({"recurring": {"nightly": {"task_path": "a.b"}}}, '["recurring"]["nightly"]["schedule"]: expected a value, got nothing: it is required'),
        *each_recurring(["", "clean", "app..x", ".x", "x.", "a b.c", "a.<locals>.b", 5, None], "task_path", DOTTED),
        *each_recurring(["", 5, None], "schedule", "expected a non-empty string of at most 255 characters, got"),
        *each_recurring(["0 0 30 2 *", "0 0 31 4,6,9,11 *"], "schedule", CRON, " (it never fires)"),
        *each_recurring(["R R * * *", "r(1-9) * * * *"], "schedule", CRON, " (random fields ('R') never mean the same time twice)"),
        *each_recurring(["x", {}, None, 5, [object], [float("nan")], [{1, 2}]], "args", "expected a list of JSON values, got"),
        *each_recurring([[], None, {1: 2}, {"a": object}, {"a": float("inf")}], "kwargs", "expected a mapping of names to JSON values, got"),
        *each_recurring(["", 5, None, "q" * 65], "queue_name", "expected a non-empty string of at most 64 characters, got"),
        *each_recurring([-101, 101, 1.5, True, "1", None], "priority", "expected a whole number from -100 to 100, got"),
        *each_recurring([5, None], "description", "expected a string, got"),
        *each_recurring(["", "Mars/Base", "../etc/passwd", "/etc/passwd", 5], "timezone", "expected a time zone such as 'Europe/Berlin', or None, got"),
        *each([*NOT_SECONDS, None], "process_heartbeat_interval", SECONDS),
        *each([*NOT_SECONDS, None], "process_alive_threshold", SECONDS),
        *each([-1, True, "5", None], "shutdown_timeout", f"expected a number of seconds >= 0 and at most {HUNDRED_YEARS} (100 years), got"),
        *each([5, b"/run/q", True], "supervisor_pidfile", "expected a file path, or None, got"),
        *each(NOT_BOOLEAN, "preserve_finished_jobs", BOOLEAN),
        *each([-1, True, "5", float("nan")], "clear_finished_jobs_after", AGE),
        *each([-0.1, False, "5"], "clear_failed_jobs_after", AGE),
        *each([-1, True, float("inf")], "clear_recurring_executions_after", AGE),
        *each([*NOT_SECONDS, None], "default_concurrency_duration", SECONDS),
        *each(NOT_BOOLEAN, "use_skip_locked", BOOLEAN),
        *each(NOT_BOOLEAN, "listen_notify", BOOLEAN),
        *each(NOT_BOOLEAN, "silence_polling", BOOLEAN),
        *each(["", "plain", 5, os.path.join], "on_thread_error", "expected the dotted path of a callable, or None, got"),
    ],
)  # fmt: skip
def test_mistakes(options, line):
    assert mistakes(options) == [HOME + line]


def test_a_path_has_to_fit_its_column():
    lines = mistakes({"recurring": {"n": {**NIGHTLY, "task_path": "a." + "b" * 254}}})
    assert lines[0].startswith(f'{HOME}["recurring"]["n"]["task_path"]: {DOTTED}')


def test_a_long_value_is_shortened():
    (line,) = mistakes({"mode": "x" * 78})
    assert line.endswith(f"got '{'x' * 78}'")
    (line,) = mistakes({"mode": "x" * 1000})
    assert line == f"{HOME}[\"mode\"]: expected one of 'fork', 'async', got '{'x' * 76}..."
    (line,) = mistakes({"clear_failed_jobs_after": 10**400})
    assert line == f'{HOME}["clear_failed_jobs_after"]: {AGE} 1{"0" * 76}...'


@pytest.mark.parametrize("expression", ["", "x", "* * * *", "60 * * * *", "@reboot", "H * * * *", "* * * * * * * *"])
def test_a_schedule_croniter_refuses(expression):
    if expression:
        (line,) = mistakes({"recurring": {"n": {**NIGHTLY, "schedule": expression}}})
        assert line.startswith(f'{HOME}["recurring"]["n"]["schedule"]: {CRON} {expression!r} (')
        assert line.endswith(f" ({config.schedule_mistake(expression)})")
    assert config.schedule_mistake(expression)


def test_a_schedule_is_refused_in_the_words_of_croniter():
    assert config.schedule_mistake("60 * * * *") == "[60 * * * *] is not acceptable, out of range"


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * *",
        "@hourly",
        "0 0 29 2 *",
        "*/5 8-18 * * mon-fri",
        "0 0 l * *",
        "0 0 * * 5#5",
        "* * * * * 30",
        # It was right when it was written, and must not stop a queue years later.
        "0 0 1 1 * 0 2020",
        "0 0 1 1 * 0 2099",
        "0 0 * mar,apr thu,fri",
    ],
)
def test_a_schedule_croniter_knows(expression):
    assert config.schedule_mistake(expression) is None
    assert load({"recurring": {"n": {**NIGHTLY, "schedule": expression}}}).recurring


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"worker": []}, '["worker"]: expected a known option, got []; did you mean \'workers\'?'),
        ({"Database-Alias": 1}, '["Database-Alias"]: expected a known option, got 1; did you mean \'database_alias\'?'),
        ({"workers": [{"thread": 4}]}, '["workers"][0]["thread"]: expected a known option, got 4; did you mean \'threads\'?'),
        ({"workers": {"THREADS": 4}}, '["workers"]["THREADS"]: expected a known option, got 4; did you mean \'threads\'?'),
        ({"workers": {"café x": 4}}, '["workers"]["café x"]: expected a known option, got 4; known here: \'queues\', \'threads\', \'processes\', \'polling_interval\', \'recycle_after_jobs\', \'recycle_above_mib\''),
        ({"workers": {"zzz": 4}}, '["workers"]["zzz"]: expected a known option, got 4; known here: \'queues\', \'threads\', \'processes\', \'polling_interval\', \'recycle_after_jobs\', \'recycle_above_mib\''),
        ({"workers": {7: 4}}, '["workers"][7]: expected a known option, got 4; known here: \'queues\', \'threads\', \'processes\', \'polling_interval\', \'recycle_after_jobs\', \'recycle_above_mib\''),
        ({"scheduler": {"dynamic_task_enabled": True}}, '["scheduler"]["dynamic_task_enabled"]: expected a known option, got True; did you mean \'dynamic_tasks_enabled\'?'),
        ({"dispatchers": {"batchsize": 1}}, '["dispatchers"]["batchsize"]: expected a known option, got 1; did you mean \'batch_size\'?'),
        ({"recurring": {"a.b": {**NIGHTLY, "key_words": {}}}}, '["recurring"]["a.b"]["key_words"]: expected a known option, got {}; known here: \'task_path\', \'schedule\', \'args\', \'kwargs\', \'queue_name\', \'priority\', \'description\', \'timezone\', \'catch_up\''),
        ({"recurring": {"n": {**NIGHTLY, "time_zone": "UTC"}}}, '["recurring"]["n"]["time_zone"]: expected a known option, got \'UTC\'; did you mean \'timezone\'?'),
    ],
)  # fmt: skip
def test_unknown_keys(options, line):
    assert mistakes(options) == [HOME + line]


def test_an_unknown_option_far_from_all_lists_the_known_ones():
    (line,) = mistakes({"xyzzy": 1})
    assert "known here: 'mode', 'workers', 'dispatchers'" in line


@pytest.mark.parametrize("options", [None, [], "x", 5])
def test_options_are_a_mapping(options):
    with pytest.raises(ImproperlyConfigured) as caught:
        load_config(tasks={"default": {**OURS, "OPTIONS": options}}, env={})
    assert f"  {HOME}: {MAPPING} {options!r}\n" in str(caught.value)


def test_all_mistakes_come_at_once():
    lines = mistakes(
        {
            "mode": "bogus",
            "workers": [{"thread": 1, "threads": 0}, {"queues": ["", "a*b"]}],
            "dispatchers": [],
            "recurring": {"a": {"schedule": "nope", "task_path": 1}},
            "surprise": 1,
            "process_heartbeat_interval": 400,
        },
        env={"DJ_QUEUE_SKIP_RECURRING": "maybe"},
        only_work=True,
        only_dispatch=True,
    )
    assert [line.split(": ")[0].removeprefix(HOME) for line in lines] == [
        "DJ_QUEUE_SKIP_RECURRING",
        '["surprise"]',
        '["mode"]',
        '["workers"][0]["thread"]',
        '["workers"][0]["threads"]',
        '["workers"][1]["queues"][0]',
        '["workers"][1]["queues"][1]',
        '["recurring"]["a"]["schedule"]',
        '["recurring"]["a"]["task_path"]',
        "--only-work --only-dispatch",
        '["process_alive_threshold"]',
    ]


def test_the_database_has_to_exist():
    known = ", ".join(map(repr, settings.DATABASES))
    place = f'{HOME}["database_alias"]'
    assert mistakes({"database_alias": "elsewher"}) == [
        f"{place}: expected one of {known}, got 'elsewher' (did you mean 'elsewhere'?)"
    ]
    place = f'{HOME}["listen_database_alias"]'
    assert mistakes({"listen_database_alias": "elsewher"}) == [
        f"{place}: expected one of {known}, got 'elsewher' (did you mean 'elsewhere'?)"
    ]
    place = f'{HOME}["database_alias"]'
    assert mistakes({"database_alias": None}) == [f"{place}: expected one of {known}, got None"]
    assert mistakes({"database_alias": ["default"]}) == [f"{place}: expected one of {known}, got ['default']"]


def test_the_error_callback_has_to_be_importable(monkeypatch):
    expected = f'{HOME}["on_thread_error"]: expected the dotted path of a callable, or None, got'
    (line,) = mistakes({"on_thread_error": "no_such_module.report"})
    assert line.startswith(f"{expected} 'no_such_module.report' (ModuleNotFoundError: ")
    (line,) = mistakes({"on_thread_error": "os.path.jion"})
    assert line.startswith(f"{expected} 'os.path.jion' (ImportError: ")
    (line,) = mistakes({"on_thread_error": f"{__name__}.not_callable"})
    assert line == f"{expected} '{__name__}.not_callable' (not callable)"


def test_the_error_callback_is_not_imported_before_the_apps_are_ready(monkeypatch):
    monkeypatch.setattr("django.apps.apps.ready", False)
    assert load({"on_thread_error": "no_such_module.report"}).on_thread_error
    (line,) = mistakes({"on_thread_error": "plain"})
    assert line.endswith("got 'plain'")


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"process_alive_threshold": 60}, "which is 60, got 60"),
        ({"process_heartbeat_interval": 400}, "which is 400, got 300"),
        ({"process_heartbeat_interval": 250}, "which is 250, got 300"),
        ({"process_heartbeat_interval": 2, "process_alive_threshold": 1}, "which is 2, got 1"),
        ({"process_heartbeat_interval": 2, "process_alive_threshold": 2.1}, "which is 2, got 2.1"),
        ({"process_heartbeat_interval": 2, "process_alive_threshold": 2.9}, "which is 2, got 2.9"),
    ],
)
def test_the_lease_outlasts_the_time_between_two_heartbeats(options, got):
    assert mistakes(options) == [
        f'{HOME}["process_alive_threshold"]: expected at least 1.5 times process_heartbeat_interval, {got}'
        " (a runner would let go of its jobs between two heartbeats)"
    ]


def test_the_least_threshold_is_accepted():
    assert load({"process_heartbeat_interval": 2, "process_alive_threshold": 3}).process_alive_threshold == 3
    assert load({"process_heartbeat_interval": 200}).process_alive_threshold == 300


def test_a_broken_heartbeat_is_told_once():
    assert len(mistakes({"process_heartbeat_interval": 400, "process_alive_threshold": "x"})) == 1
    assert len(mistakes({"process_heartbeat_interval": None, "process_alive_threshold": 1})) == 1


# What is started

KEEP_ALL = {"clear_finished_jobs_after": None}


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, True),
        (KEEP_ALL, False),
        ({"preserve_finished_jobs": False}, True),  # some are there all the same
        ({**KEEP_ALL, "preserve_finished_jobs": False}, True),
        ({**KEEP_ALL, "clear_failed_jobs_after": 0}, True),
        ({**KEEP_ALL, "clear_recurring_executions_after": 5}, True),
        ({**KEEP_ALL, "recurring": {"nightly": NIGHTLY}}, True),
        ({**KEEP_ALL, "scheduler": {"dynamic_tasks_enabled": True}}, True),
        ({**KEEP_ALL, "scheduler": {"polling_interval": 1}}, False),
    ],
)
def test_scheduler_needed(options, needed):
    assert load(options).scheduler_needed is needed
    assert load(options, skip_recurring=True).scheduler_needed is False
    assert load(options, only_work=True).scheduler_needed is False


def test_only_work_and_only_dispatch():
    both = {"workers": [{"threads": 1}], "dispatchers": [{"batch_size": 2}]}
    work = load(both, only_work=True)
    assert (work.workers, work.dispatchers, work.scheduler) == (
        (WorkerConfig(threads=1),),
        (),
        None,
    )
    dispatch = load(both, only_dispatch=True)
    assert (dispatch.workers, dispatch.scheduler) == ((), None)
    assert dispatch.dispatchers == (DispatcherConfig(batch_size=2),)
    assert mistakes(only_work=True, only_dispatch=True) == [
        "--only-work --only-dispatch: expected at most one of the two, got both"
    ]


NOTHING = f"{HOME}: expected at least one worker, dispatcher or scheduler, got none of them"


@pytest.mark.parametrize(
    ("options", "overrides"),
    [
        ({"workers": [], "dispatchers": [], **KEEP_ALL}, {}),
        ({"workers": [], "dispatchers": []}, {"skip_recurring": True}),
        ({"workers": []}, {"only_work": True}),
        ({"dispatchers": []}, {"only_dispatch": True}),
    ],
)
def test_nothing_to_start_is_a_mistake(options, overrides):
    assert mistakes(options, **overrides) == [NOTHING]


def test_a_scheduler_alone_is_something():
    assert load({"workers": [], "dispatchers": []}).scheduler_needed


def test_async_workers_have_one_process():
    options = {"mode": "async", "workers": [{"processes": 4, "threads": 2}, {}]}
    with pytest.warns(UserWarning, match="'default' runs in async mode") as caught:
        found = load_config(tasks=tasks(options), env={})
    assert found.workers == (WorkerConfig(threads=2), WorkerConfig())
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="async mode"):
        assert load({"workers": {"processes": 4}}, mode="async").workers[0].processes == 1


def test_one_process_or_fork_mode_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load({"mode": "async"})
        assert load({"workers": {"processes": 4}}).workers[0].processes == 4


# Sources and their precedence


def test_mode_has_five_sources(yaml_file):
    file = yaml_file("mode: async")
    env = {"DJ_QUEUE_CONFIG": file}
    assert load({}).mode == "fork"
    assert load({"mode": "async"}).mode == "async"
    assert load({"mode": "fork"}, env=env).mode == "async"
    assert load({"mode": "fork"}, env={**env, "DJ_QUEUE_MODE": "fork"}).mode == "fork"
    env = {**env, "DJ_QUEUE_MODE": "fork"}
    assert load({"mode": "fork"}, env=env, mode="async").mode == "async"


OTHER_VALUES = {
    "mode": "async",
    "workers": [{"threads": 9}],
    "dispatchers": [{"batch_size": 9}],
    "scheduler": {"polling_interval": 9},
    "recurring": {"nightly": NIGHTLY},
    "process_heartbeat_interval": 9,
    "process_alive_threshold": 999,
    "shutdown_timeout": 9,
    "supervisor_pidfile": "/nine",
    "preserve_finished_jobs": False,
    "clear_finished_jobs_after": 9,
    "clear_failed_jobs_after": 9,
    "clear_recurring_executions_after": 9,
    "default_concurrency_duration": 9,
    "database_alias": "elsewhere",
    "use_skip_locked": False,
    "listen_notify": False,
    "listen_database_alias": "elsewhere",
    "silence_polling": False,
    "on_thread_error": "os.path.join",
}


def test_other_values_cover_every_option():
    from dj_queue.config.options import OPTIONS

    assert set(OTHER_VALUES) == set(OPTIONS)


@pytest.mark.parametrize("option", OTHER_VALUES)
def test_a_file_beats_settings_and_settings_beat_defaults(option, yaml_file):
    import yaml

    other = getattr(load({option: OTHER_VALUES[option]}), option)
    assert other != getattr(load(), option)
    flat = yaml_file(yaml.safe_dump({option: OTHER_VALUES[option]}), "flat.yml")
    nested = yaml_file(yaml.safe_dump({"backends": {"default": {option: OTHER_VALUES[option]}}}), "nested.yml")
    # A value in the settings that the file replaces is never even read.
    for settings_value in ({}, {option: object()}):
        for file in (flat, nested):
            env = {"DJ_QUEUE_CONFIG": file}
            assert getattr(load(settings_value, env=env), option) == other
            assert getattr(load(settings_value, config_file=file), option) == other


def test_a_key_is_replaced_whole(yaml_file):
    file = yaml_file("workers: {queues: mail}\nscheduler: {polling_interval: 7}\nrecurring: {}")
    found = load(
        {
            "workers": [{"threads": 9}, {"threads": 8}],
            "scheduler": {"dynamic_tasks_enabled": True},
            "recurring": {"nightly": NIGHTLY},
            "shutdown_timeout": 77,
        },
        config_file=file,
    )
    assert found.workers == (WorkerConfig(("mail",)),)
    assert found.scheduler == SchedulerConfig(polling_interval=7)
    assert found.recurring == ()
    assert found.shutdown_timeout == 77


def test_the_config_flag_beats_the_variable(yaml_file):
    flag, variable = yaml_file("mode: async", "a.yml"), yaml_file("shutdown_timeout: 9", "b.yml")
    found = load(env={"DJ_QUEUE_CONFIG": variable}, config_file=flag)
    assert (found.mode, found.shutdown_timeout) == ("async", 5)
    # The losing file is not even opened.
    assert load(env={"DJ_QUEUE_CONFIG": "/no/such/file"}, config_file=flag).mode == "async"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[(text, True) for text in ("1", "true", "yes", "on", "TRUE", "Yes", "oN")],
        *[(text, False) for text in ("0", "false", "no", "off", "FALSE", "No", "oFF")],
    ],
)
def test_skip_recurring_from_the_environment(text, expected):
    env = {"DJ_QUEUE_SKIP_RECURRING": text}
    assert load(env=env).skip_recurring is expected
    assert load(env=env, skip_recurring=not expected).skip_recurring is not expected


@pytest.mark.parametrize("text", ["2", "ja", "t", "t rue", "none"])
def test_any_other_skip_recurring_is_a_mistake(text):
    assert mistakes(env={"DJ_QUEUE_SKIP_RECURRING": text}) == [
        f"DJ_QUEUE_SKIP_RECURRING: expected 1, true, yes, on or 0, false, no, off, got {text!r}"
    ]


def test_skip_recurring_is_no_option():
    assert mistakes({"skip_recurring": True})[0].startswith(f'{HOME}["skip_recurring"]: expected a')


def test_mistakes_in_the_mode_name_their_source():
    expected = "expected one of 'fork', 'async', got"
    assert mistakes(env={"DJ_QUEUE_MODE": "forks"}) == [f"DJ_QUEUE_MODE: {expected} 'forks' (did you mean 'fork'?)"]
    assert mistakes(mode="x") == [f"--mode: {expected} 'x'"]


def test_empty_variables_are_unset():
    names = ("DJ_QUEUE_MODE", "DJ_QUEUE_CONFIG", "DJ_QUEUE_SKIP_RECURRING")
    assert load({"mode": "async"}, env=dict.fromkeys(names, "")) == load({"mode": "async"})
    assert load(env={"DJ_QUEUE_SKIP_RECURRING": "", "DJ_QUEUE_MODE": "async"}).scheduler_needed


def test_the_process_environment_is_the_default(monkeypatch, yaml_file):
    monkeypatch.setenv("DJ_QUEUE_CONFIG", yaml_file("shutdown_timeout: 9"))
    monkeypatch.setenv("DJ_QUEUE_MODE", "async")
    monkeypatch.setenv("DJ_QUEUE_SKIP_RECURRING", "1")
    found = load_config(tasks=tasks({}))
    assert (found.shutdown_timeout, found.mode, found.skip_recurring) == (9, "async", True)
    assert load_config(tasks=tasks({}), env={}) == load()


# YAML files


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "null", "{}", "backends: {}"])
def test_an_empty_file_says_nothing(content, yaml_file):
    assert replace(load(config_file=yaml_file(content)), config_file=None) == load()


def test_an_alias_the_file_leaves_out_keeps_its_settings(yaml_file):
    file = yaml_file("backends: {critical: {mode: async}}")
    everything = tasks({"shutdown_timeout": 9}, critical=OURS)
    overrides = Overrides(config_file=file)
    default = load_config("default", tasks=everything, overrides=overrides, env={})
    critical = load_config("critical", tasks=everything, overrides=overrides, env={})
    assert (default.mode, default.shutdown_timeout) == ("fork", 9)
    assert (critical.mode, critical.shutdown_timeout) == ("async", 5)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("mode: threads", "{file}: mode: expected one of 'fork', 'async', got 'threads'"),
        ("workers: [{threads: two}]", "{file}: workers[0].threads: " + WHOLE + " 'two'"),
        ("workers:", "{file}: workers: expected a mapping of options or a list of them, got None"),
        ("wokers: []", "{file}: wokers: expected a known option, got []; did you mean 'workers'?"),
        (
            "backends: {default: {workers: {thread: 2}}}",
            "{file}: backends.default.workers.thread: expected a known option, got 2; "
            "did you mean 'threads'?",
        ),
        (
            "recurring: {a b: {task_path: a.b, schedule: 0 0 30 2 *}}",
            '{file}: recurring["a b"].schedule: ' + CRON + " '0 0 30 2 *' (it never fires)",
        ),
        (
            "recurring: {a: {task_path: a.b, schedule: '@daily', args: [2024-01-01]}}",
            "{file}: recurring.a.args: expected a list of JSON values, "
            "got [datetime.date(2024, 1, 1)]",
        ),
        (
            "- mode: async",
            "{file}: expected a mapping of options, or `backends:`, at the top, "
            "got [{{'mode': 'async'}}]",
        ),
        ("text", "{file}: expected a mapping of options, or `backends:`, at the top, got 'text'"),
        (
            "backends: {default: {}}\nmode: async",
            "{file}: backends: expected alone at the top, got it beside 'mode'",
        ),
        (
            "backends: []",
            "{file}: backends: expected a mapping from aliases to options, got []",
        ),
        (
            "backends:",
            "{file}: backends: expected a mapping from aliases to options, got None",
        ),
        (
            "backends: {default: [1]}",
            "{file}: backends.default: expected a mapping of options, got [1]",
        ),
        (
            "backends: {defualt: {}}",
            "{file}: backends.defualt: expected an alias of TASKS, got 'defualt'; "
            "did you mean 'default'?",
        ),
        (
            "backends: {other: {}}",
            "{file}: backends.other: expected an alias of TASKS, got 'other'; "
            "TASKS has 'default', 'mail'",
        ),
        (
            "mode: async\n  workers: []",
            "{file}: expected valid YAML, but line 2, column 10: "
            "mapping values are not allowed here",
        ),
        ("a: 1\n---\nb: 2", "{file}: expected valid YAML, but line 2, column 1: but found another document"),
        ("!!python/name:os.system x", "{file}: expected valid YAML, but line 1, column 1: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file(content, line, yaml_file):
    file = yaml_file(content)
    expected = [line.format(file=file)]
    others = {"mail": FOREIGN}
    assert mistakes(others=others, config_file=file) == expected
    assert mistakes(others=others, env={"DJ_QUEUE_CONFIG": file}) == expected


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa", b"mode: \x00", b"a: 2024-13-45", b"[" * 5000])
def test_what_is_no_yaml_at_all(content, yaml_file):
    file = yaml_file(content)
    (line,) = mistakes(config_file=file)
    assert line.startswith(f"{file}: expected valid YAML, but ")


def test_an_unreadable_file(tmp_path):
    missing = str(tmp_path / "missing.yml")
    expected = "expected a readable YAML file, got"
    assert mistakes(config_file=missing) == [f"--config: {expected} {missing!r} (No such file or directory)"]
    assert mistakes(env={"DJ_QUEUE_CONFIG": str(tmp_path)}) == [
        f"DJ_QUEUE_CONFIG: {expected} {str(tmp_path)!r} (Is a directory)"
    ]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_forbidden_file(yaml_file):
    file = yaml_file("mode: async")
    os.chmod(file, 0)
    assert mistakes(config_file=file)[0].endswith("(Permission denied)")


def test_mistakes_of_settings_and_file_come_together(yaml_file):
    file = yaml_file("backends: {nobody: {}, default: {mode: x}}")
    assert [line.split(": expected")[0] for line in mistakes({"surprise": 1}, config_file=file)] == [
        f"{file}: backends.nobody",
        f'{HOME}["surprise"]',
        f"{file}: backends.default.mode",
    ]


# Aliases


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("default",)),
        ({"default": FOREIGN}, ()),
        ({"a": OURS, "default": FOREIGN, "b": OURS}, ("a", "b")),
        ({"a": {"BACKEND": "dj_queue.backend.DjQueueBackend2"}, "b": {}, "c": None}, ()),
        ("nonsense", ()),
    ],
)
def test_managed_aliases(given, expected):
    assert managed_aliases(given) == expected
    with override_settings(TASKS=given):
        assert managed_aliases() == expected


def test_without_tasks_there_is_an_implicit_alias(monkeypatch):
    # Django's own default names its immediate backend, and is nobody's choice.
    monkeypatch.setattr(type(settings._wrapped), "is_overridden", lambda self, name: False)
    monkeypatch.setattr(settings._wrapped, "TASKS", {"default": FOREIGN}, raising=False)
    assert managed_aliases() == ("default",)
    assert load_config(env={}) == load()


def test_a_missing_alias_names_the_managed_ones():
    with pytest.raises(ImproperlyConfigured) as caught:
        load_config("mial", tasks=tasks({}, mail=OURS, other=FOREIGN), env={})
    assert str(caught.value) == (
        "TASKS[\"mial\"] does not exist. The aliases dj-queue manages: 'default', 'mail'. "
        f"Name one of them, or give this one the BACKEND '{BACKEND_PATH}'."
    )


def test_a_foreign_alias_names_the_managed_ones():
    with pytest.raises(ImproperlyConfigured) as caught:
        load_config("other", tasks=tasks({}, other=FOREIGN), env={})
    assert str(caught.value).startswith(
        "TASKS[\"other\"] has the BACKEND 'django.tasks.backends.dummy.DummyBackend', so it is "
        "not dj-queue's. The aliases dj-queue manages: 'default'."
    )


def test_mistakes_name_the_alias():
    lines = mistakes(alias="mail", others={"mail": {**OURS, "OPTIONS": {"mode": 1}}})
    assert lines == ['TASKS["mail"]["OPTIONS"]["mode"]: expected one of \'fork\', \'async\', got 1']


# The configuration of the process


def test_a_configuration_is_read_once():
    with override_settings(TASKS=tasks({"shutdown_timeout": 9})):
        assert backend_config().shutdown_timeout == 9
        assert backend_config() is backend_config("default")


def test_changed_settings_are_read_again():
    with override_settings(TASKS=tasks({"shutdown_timeout": 9, "database_alias": "elsewhere"})):
        assert backend_config().shutdown_timeout == 9
        assert database_aliases() == {"elsewhere"}
        with override_settings(TASKS=tasks({"shutdown_timeout": 8})):
            assert backend_config().shutdown_timeout == 8
            assert database_aliases() == {"default"}
        assert backend_config().shutdown_timeout == 9
        before = backend_config()
        with override_settings(USE_TZ=True):
            assert backend_config() is before


def test_a_broken_configuration_is_not_remembered():
    broken = tasks({"mode": "x"})
    with override_settings(TASKS=broken):
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured):
                backend_config()


def test_an_activated_configuration_answers_until_reset():
    with override_settings(TASKS=tasks({}, mail=OURS)):
        assert backend_config().mode == "fork"
        assert database_aliases() == {"default"}
        mine = replace(backend_config(), mode="async", database_alias="elsewhere")
        activate(mine)
        assert backend_config() is mine
        assert backend_config("mail").mode == "fork"
        assert database_aliases() == {"default", "elsewhere"}
        config.reset()
        assert backend_config().mode == "fork"
        assert database_aliases() == {"default"}


def test_a_file_with_backends_governs_every_alias_of_the_process(yaml_file, monkeypatch):
    file = yaml_file("backends: {default: {shutdown_timeout: 9}, mail: {database_alias: elsewhere}}")
    monkeypatch.chdir(Path(file).parent)
    with override_settings(TASKS=tasks({}, mail=OURS)):
        assert backend_config("mail").database_alias == "default"
        activate(load_config(overrides=Overrides(config_file=Path(file).name)))
        monkeypatch.chdir("/")
        assert database_aliases() == {"default", "elsewhere"}
        assert backend_config().shutdown_timeout == 9
        assert backend_config("mail").database_alias == "elsewhere"
        config.reset()
        assert backend_config("mail").database_alias == "default"


def test_a_flat_file_of_the_flag_governs_the_selected_alias_alone(yaml_file):
    file = yaml_file("database_alias: elsewhere")
    with override_settings(TASKS=tasks({}, mail=OURS)):
        activate(load_config("mail", overrides=Overrides(config_file=file)))
        assert backend_config("mail").database_alias == "elsewhere"
        assert backend_config().database_alias == "default"


def test_database_aliases_survive_a_broken_configuration(monkeypatch):
    everything = {
        "default": {**OURS, "OPTIONS": {"mode": "x", "database_alias": "elsewhere", "nope": 1}},
        "second": {**OURS, "OPTIONS": None},
        "misspelt": {**OURS, "OPTIONS": {"database_alias": "elsewher"}},
        "unhashable": {**OURS, "OPTIONS": {"database_alias": ["third"]}},
        "foreign": {**FOREIGN, "OPTIONS": {"database_alias": "third"}},
    }
    with override_settings(TASKS=everything):
        assert database_aliases() == {"elsewhere", "default"}
    monkeypatch.setenv("DJ_QUEUE_CONFIG", "/no/such/file")
    monkeypatch.setenv("DJ_QUEUE_SKIP_RECURRING", "perhaps")
    with override_settings(TASKS=tasks({"database_alias": "elsewhere"})):
        assert database_aliases() == {"elsewhere"}
    with override_settings(TASKS={"default": FOREIGN}):
        assert database_aliases() == frozenset()


def test_importing_and_reading_needs_neither_apps_nor_croniter_nor_yaml():
    # Tasks modules import the backend before the apps are ready; memory is counted per process.
    script = f"""
import sys
from django.conf import settings
settings.configure(
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
    TASKS={{"default": {{"BACKEND": "{BACKEND_PATH}", "OPTIONS": {{"on_thread_error": "a.b"}}}}}},
)
from dj_queue.config import backend_config, database_aliases
assert backend_config().on_thread_error == "a.b"
assert database_aliases() == {{"default"}}
loaded = {{"croniter", "yaml", "difflib", "django.db", "dj_queue.models"}} & set(sys.modules)
assert not loaded, loaded
"""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
