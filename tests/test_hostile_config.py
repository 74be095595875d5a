"""Configuration of any shape and size: a refusal within moments, in words, and never another error."""

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from dj_queue.config import BACKEND_PATH, Overrides, load_config
from dj_queue.config.problems import shown

pytestmark = pytest.mark.once  # no database has a part in it

LAUGHS = ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"] + [
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
]
TASK = "  x:\n    task_path: a.b\n    schedule: '* * * * *'\n    kwargs:\n"
FILES = {
    "laughs as options": "\n".join(LAUGHS),
    "laughs as arguments": "recurring:\n" + TASK + "".join(f"      {line}\n" for line in LAUGHS),
    "laughs as a number": "workers:\n  threads:\n" + "".join(f"    {line}\n" for line in LAUGHS),
    "laughs by merging": "a: &a {x: 1}\n"
    + "\n".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 50)}]}}" for a, b in zip("abcde", "bcdef", strict=True)),
    "a list in itself": "workers: &r [*r]",
    "arguments in themselves": "recurring:\n" + TASK + "      a: &r {b: [*r]}\n",
    "brackets": "workers: " + "[" * 100_000,
    "closed brackets": "workers: " + "[" * 5000 + "]" * 5000,
    "braces": "{" * 100_000,
    "dashes": "- " * 60_000,
    "documents": "--- 1\n" * 20_000,
    "a list": "[" + "1," * 60_000 + "]",
    "keys": "".join(f"work{n}: 1\n" for n in range(8000)),
    "tasks": "recurring:\n" + "".join(f"  k{n}: {{schedule: 0 0 30 2 *}}\n" for n in range(2500)),
    "aliases without end": "backends:\n" + "".join(f"  defaul{n}: {{}}\n" for n in range(3000)),
    "an endless number": "workers: {threads: 1" + "0" * 5000 + "}",
    "an endless number in hexadecimal": "workers: {threads: 0x" + "f" * 50_000 + "}",
    "an endless number to sixty": "shutdown_timeout: 1" + ":59" * 40_000,
    "an endless date": "shutdown_timeout: 2020-01-01 " + "0" * 10_000,
    "a key twice": "mode: fork\nmode: async",
    "a key twice below": "workers: {threads: 1, processes: 1, threads: 2}",
    "a large file": "#" * 2_000_000,
    "a merge of nothing": "<<: 1",
    "a tag": "a: !!python/object/apply:os.abort []",
    "another tag": "workers: !x [1]",
    "a set": "workers: !!set {a, b}",
    "bytes": "mode: !!binary aGVsbG8=",
    "not a number": "shutdown_timeout: .nan",
    "infinity": "process_alive_threshold: .inf",
    "a truth as a number": "workers: {threads: yes}",
    "a surrogate": 'workers: {queues: "\\ud800"}',
    "a list as a key": "? [1, 2]\n: 3",
    "a mapping as a key": "? {a: 1}\n: 3",
    "a date as a key": "2024-01-01: 3",
    "a NUL in a selector": 'workers: {queues: ["a\\0b"]}',
    "an anchor that nobody set": "mode: *nothing",
}
PROGRAM = """
import json, resource, sys
from django.conf import settings
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
from django.core.exceptions import ImproperlyConfigured
from dj_queue.config import Overrides, load_config
try:
    load_config(tasks={"default": {"BACKEND": "dj_queue.backend.DjQueueBackend"}}, env={}, overrides=Overrides(config_file=sys.argv[1]))
    said = "accepted"
except ImproperlyConfigured as error:
    said = str(error)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([said, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024]))
"""  # noqa: E501


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    file = tmp_path / "queue.yml"
    file.write_text(FILES[name])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:] or done.returncode
    said, seconds, mib = json.loads(done.stdout)
    assert said.startswith("dj-queue cannot use the configuration of 'default' (")
    assert len(said) < 20_000
    assert said.isprintable() or set(said) - {"\n"} == {c for c in said if c.isprintable()}
    # Mostly the imports; a machine under load counts as much, and bombs took minutes and gibibytes.
    assert seconds < 20
    assert mib < 300


def refused(options: object) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        load_config(tasks={"default": {"BACKEND": BACKEND_PATH, "OPTIONS": options}}, env={})
    return str(caught.value)


def _cycle() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


def _laughs() -> list[object]:
    value: list[object] = ["lol"] * 9
    for _ in range(12):
        value = [value] * 9
    return value


def _deep() -> list[object]:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


class Rude:
    def __repr__(self) -> str:
        raise SystemError


SHAPES = {
    "cycle": _cycle,
    "laughs": _laughs,
    "deep": _deep,
    "rude": Rude,
    "huge": lambda: 10**5000,
    "long": lambda: "x" * 10**7,
}
TASK_OPTIONS = {"task_path": "a.b", "schedule": "* * * * *"}


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "put",
    [
        lambda value: {"workers": {"threads": value}},
        lambda value: {"workers": [{"queues": [value, "a"]}]},
        lambda value: {"workers": value},
        lambda value: {"mode": value},
        lambda value: {"surprise": value},
        lambda value: {"database_alias": value},
        lambda value: {"supervisor_pidfile": [value]},
        lambda value: {"on_thread_error": value},
        lambda value: {"shutdown_timeout": [value]},
        lambda value: {"recurring": {"k": {**TASK_OPTIONS, "args": [value, object()]}}},
        lambda value: {"recurring": {"k": {**TASK_OPTIONS, "kwargs": {"a": [value, {"b": object()}]}}}},
        lambda value: {"recurring": {"k": value}},
        lambda value: value,
    ],
)
def test_options_of_any_shape_are_refused_at_once(make, put):
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    value = make()
    said = refused(put(value))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(said) < 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 20
    assert peak < 200_000_000
    while isinstance(value, list) and value and value is not value[0]:
        value = value.pop()  # or Python would free it by a recursion of its own


@pytest.mark.parametrize("make", [_cycle, _laughs, _deep])
def test_arguments_of_a_recurring_task_that_json_cannot_hold(make):
    for key, value in (("args", make()), ("kwargs", {"a": make()})):
        said = refused({"recurring": {"k": {**TASK_OPTIONS, key: value}}})
        assert "JSON values, got " in said


@pytest.mark.parametrize("text", ["a\0b", "\0", "a\ud800", "\udfff*", "\0*"])
def test_a_selector_is_text_that_databases_store(text):
    for queues in (text, [text], ["ok", text]):
        assert "expected a queue name, or the start of one" in refused({"workers": {"queues": queues}})


def test_a_key_of_any_kind():
    for key in (10**5000, float("nan"), "\ud800", "x" * 10**6, "a\nb", (), ("a",) * 10**5, None, b"\xff", Rude):
        said = refused({key: 1, "workers": {key: 2}})
        assert len(said) < 20_000
        said.encode()  # so that every log can hold it


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "a\0b", "/", "\ud800"])
def test_a_file_that_is_none(path):
    with pytest.raises(ImproperlyConfigured, match="--config: expected a readable YAML file"):
        load_config(env={}, overrides=Overrides(config_file=path))


def test_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImproperlyConfigured, match="not a regular file"):
        load_config(env={}, overrides=Overrides(config_file=str(tmp_path / "pipe")))


def test_a_mistake_too_many_is_counted(tmp_path: Path) -> None:
    said = refused({f"work{n}": 1 for n in range(200)})
    assert said.startswith("dj-queue cannot use the configuration of 'default' (200 mistakes):")
    assert said.count("expected a known option") == 50
    assert "\n  and 150 more\n" in said


def test_anchors_and_merging_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "queue.yml"
    file.write_text(
        "workers:\n"
        "  - &usual {queues: [a], threads: 2, processes: 2}\n"
        "  - &more {<<: *usual, threads: 9}\n"
        "  - {<<: *more, queues: b}\n"
    )
    found = load_config(env={}, overrides=Overrides(config_file=str(file)))
    assert [(worker.queues, worker.threads, worker.processes) for worker in found.workers] == [
        (("a",), 2, 2),
        (("a",), 9, 2),
        (("b",), 9, 2),
    ]


def test_a_large_file_of_use(tmp_path: Path) -> None:
    file = tmp_path / "queue.yml"
    lines = (
        f"  task{n}:\n    task_path: app.tasks.task{n}\n    schedule: '{n % 60} 3 * * *'\n    queue_name: maintenance\n"
        for n in range(400)
    )
    file.write_text("recurring:\n" + "".join(lines))
    assert len(load_config(env={}, overrides=Overrides(config_file=str(file))).recurring) == 400


@pytest.mark.parametrize(
    "value",
    [(), (1,), (1, 2), [], {}, {"a": [1, ("b",)]}, "x", b"x", 1.5, None, True, {1, 2}, -(10**30), [[[["deep"]]]]],
)
def test_a_plain_value_is_shown_as_python_shows_it(value):
    assert shown(value) == repr(value)
