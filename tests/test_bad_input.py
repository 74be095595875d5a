"""What cannot be stored is refused at enqueue; what a task does wrong is a failed job, never a stuck one."""

import enum
import sys
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from django.tasks import TaskResult, TaskResultStatus, default_task_backend
from django.tasks.signals import task_finished
from django.utils import timezone

from dj_queue.api import enqueue_on_commit
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.exceptions import DjQueueError, EnqueueError, TaskPathError
from dj_queue.models import ClaimedExecution, FailedExecution, Job, Semaphore
from dj_queue.operations import execution
from tests.project import tasks
from tests.project.tasks import add, echo, one_per_key, return_given
from tests.working import WORKER, claim, name_case, run, states, work

pytestmark = pytest.mark.django_db

needs_refusal_of_nul = pytest.mark.needs("refusal of NUL")
needs_nul = pytest.mark.needs("NUL in JSON")
DEEPEST = dialect_for("default").json_limits.depth


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def nested_keys(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"k": value}
    return value


def containing_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


BAD_VALUES: dict[str, Any] = {
    "set": {1},
    "frozenset": frozenset(),
    "object": object(),
    "class": int,
    "function": nested,
    "generator": (each for each in ()),
    "date": date(2026, 1, 1),
    "timedelta": timedelta(1),
    "UUID": uuid4(),
    "Decimal": Decimal(1),
    "complex": 1j,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "lone surrogate": "a\udc80b",
    "bytes that are not text": b"\xff",
    "number as key": {1: 2},
    "None as key": {None: 2},
    "bool as key": {True: 2},
    "tuple as key": {(1,): 2},
    "bytes as key": {b"k": 2},
    "lone surrogate in a key": {"\ud800": 1},
    "too deep by one": nested(DEEPEST),  # the list of arguments is a level of its own
    "keys too deep by one": nested_keys(DEEPEST),
    "10,000 levels": nested(10_000),
    "10,000 levels of keys": nested_keys(10_000),
    "a list that contains itself": containing_itself(),
    "an integer of 5,001 digits": 10**5000,
}
WHERE: dict[str, Callable[[Any], Any]] = {
    "positional": echo.enqueue,
    "keyword": lambda value: echo.enqueue(name=value),
    "deep inside": lambda value: echo.enqueue(1, [{"a": (value,)}]),
    "scheduled": lambda value: echo.using(run_after=timezone.now() + timedelta(days=1)).enqueue(value),
    "in bulk": lambda value: default_task_backend.enqueue_all([(echo, [1], {}), (echo, [value], {})]),
    "on commit": lambda value: enqueue_on_commit(echo, value),
    "limited": lambda value: one_per_key.enqueue("k", value),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("bad", BAD_VALUES)
def test_arguments_that_are_not_json(bad: str, where: str) -> None:
    with pytest.raises(EnqueueError) as caught:
        WHERE[where](BAD_VALUES[bad])
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, DjQueueError)
    assert len(str(caught.value)) < 1000
    assert Job.objects.count() == Semaphore.objects.count() == 0


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({1}, "['args'][0]"),
        ([1, {2}], "[1]"),
        ({"a": {"b": [{3}]}}, "['a']['b'][0]"),
        (float("nan"), "nan"),
        ({"a": {5: 1}}, "key 5"),
    ],
    ids=name_case,
)
def test_the_error_names_the_task_and_the_place(value: Any, place: str) -> None:
    with pytest.raises(EnqueueError) as caught:
        echo.enqueue(value)
    assert "tests.project.tasks.echo" in str(caught.value)
    assert place.removeprefix("['args']") in str(caught.value)


@needs_refusal_of_nul
@pytest.mark.parametrize("value", ["a\0b", ["\0"], {"k": "\0"}, {"\0": 1}, b"\0"], ids=name_case)
@pytest.mark.parametrize("where", WHERE)
def test_nul_is_refused_where_the_database_refuses_it(value: Any, where: str) -> None:
    with pytest.raises(EnqueueError, match="NUL"):
        WHERE[where](value)
    assert Job.objects.count() == 0


@needs_nul
def test_nul_is_stored_where_the_database_stores_it() -> None:
    result = echo.enqueue("a\0b", k={"\0": b"\0"})
    fetched = default_task_backend.get_result(result.id)
    assert (fetched.args, fetched.kwargs) == (["a\0b"], {"k": {"\0": "\0"}})
    work()
    result.refresh()
    assert result.return_value == {"args": ["a\0b"], "kwargs": {"k": {"\0": "\0"}}}


def test_the_deepest_arguments_go_all_the_way() -> None:
    result = return_given.enqueue(nested(DEEPEST - 1))
    assert len(work()) == 1
    fetched = default_task_backend.get_result(result.id)
    assert fetched.return_value == nested(DEEPEST - 1) == fetched.args[0]


class Colour(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


AWKWARD_VALUES: list[Any] = [
    *[0, -1, 2**31, -(2**63), 2**64 - 1],
    *[pytest.param(value, marks=pytest.mark.needs("wide integers")) for value in (-(2**64), 10**40, 10**1000)],
    *[0.0, 1.0, -2.5, 0.1, 1e15, 1e16, 1e22, 1e23, 1.7976931348623157e308, 5e-324, 1e-7, 123456789.123456789],
    *["", " ", "é", "\U0001f600", "\u2028", "\x01\x7f", '"\\/', "\\u0000", "%s {x}", "x" * 1_000_000],
    *[{"": ""}, {"a b": {"é": []}}, {"k1": 1, "a": 2, "k": 3}, [], {}, [[]], [None, True, False]],
    *[Colour.RED, Number.ONE, {Colour.RED: [Number.ONE]}],
]


@pytest.mark.parametrize("value", AWKWARD_VALUES, ids=name_case)
def test_what_is_accepted_comes_back_as_it_went_in(value: Any) -> None:
    result = return_given.enqueue(value)
    fetched = default_task_backend.get_result(result.id)
    assert result.args == fetched.args == [value]
    assert shape(result.args) == shape(fetched.args)
    (job,) = work()
    fetched.refresh()
    assert fetched.return_value == value
    assert job.result is not None
    assert shape(job.result.return_value) == shape(fetched.return_value)


def shape(value: Any) -> Any:
    """The value with its types, in which 1 and 1.0 and True differ."""
    if isinstance(value, dict):
        return (type(value), {key: (type(key), shape(item)) for key, item in value.items()})
    if isinstance(value, list):
        return (type(value), [shape(item) for item in value])
    return (type(value), value)


# ---- tasks that no worker could run -----------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.renamed, tasks.first_of_two], ids=["renamed", "replaced"])
def test_a_task_that_no_worker_could_find(task: Any) -> None:
    for enqueue in (task.enqueue, lambda: enqueue_on_commit(task)):
        with pytest.raises(EnqueueError, match=r"tests\.project\.tasks\."):
            enqueue()
    assert Job.objects.count() == 0


def test_a_task_whose_name_is_found() -> None:
    result = tasks.twice.enqueue()
    work()
    result.refresh()
    assert result.return_value == "second"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no_such_module.task", "no_such_module"),
        ("tests.project.tasks.no_such_task", "no_such_task"),
        ("tests.project.tasks.not_a_task", "not a task"),
        ("tests.project.tasks.Path", "not a task"),
        ("tests.project", "not a task"),
        ("nodots", "nodots"),
        ("", ""),
        ("..", ".."),
        ("é.ü", "é"),
    ],
)
def test_a_stored_path_that_leads_to_no_task(path: str, text: str) -> None:
    result = add.enqueue(1, 2)
    Job.objects.update(task_path=path)
    assert len(work()) == 1
    failed = failure_of(result)
    assert failed.exception_class == "dj_queue.exceptions.TaskPathError"
    assert text in failed.message
    assert "discard the job" in failed.message
    result.refresh()
    assert result.errors[0].exception_class is TaskPathError


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('at import')",
        "import no_such_module_of_its_own",
        "def broken(:",
        "import sys; sys.exit('at import')",
        "class E(Exception):\n  def __str__(self): raise RuntimeError\nraise E",
    ],
    ids=["raises", "misses a module", "is no Python", "exits", "raises what cannot be printed"],
)
def test_a_module_that_cannot_be_imported(source: str, tmp_path: Path, monkeypatch: Any) -> None:
    name = f"broken_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    result = add.enqueue(1, 2)
    Job.objects.update(task_path=f"{name}.task")
    assert default_task_backend.get_result(result.id).task.module_path == f"{name}.task"
    assert len(work()) == 1
    assert failure_of(result).exception_class == "dj_queue.exceptions.TaskPathError"
    assert name not in sys.modules


def test_arguments_that_do_not_fit_the_task() -> None:
    """As with Django's own backends, this is the task's failure."""
    result = add.enqueue(1, 2, 3)
    work()
    assert failure_of(result).exception_class == "builtins.TypeError"


# ---- tasks that end badly ---------------------------------------------------------------------------


def failure_of(result: TaskResult) -> FailedExecution:
    """The one failure there is, after the checks that hold for every failure."""
    assert states() == {"failed": Job.objects.count()}
    assert not ClaimedExecution.objects.exists()
    failed = FailedExecution.objects.get(job_id=result.id)
    fetched = default_task_backend.get_result(result.id)
    assert fetched.status == TaskResultStatus.FAILED
    assert [(each.exception_class_path, each.traceback) for each in fetched.errors] == [
        (failed.exception_class, failed.traceback)
    ]
    assert fetched.attempts == 1
    assert failed.job.return_value is None
    assert failed.exception_class
    assert failed.traceback
    return failed


@pytest.mark.parametrize(
    ("task", "args", "exception_class", "message"),
    [
        (tasks.fail, ["on purpose"], "builtins.ValueError", "on purpose"),
        (tasks.raise_empty, [], "builtins.ValueError", ""),
        (tasks.raise_system_exit, [], "builtins.SystemExit", "3"),
        (tasks.raise_keyboard_interrupt, [], "builtins.KeyboardInterrupt", ""),
        (tasks.raise_given, ["GeneratorExit"], "builtins.GeneratorExit", ""),
        (tasks.raise_given, ["StopIteration"], "builtins.StopIteration", ""),
        (tasks.raise_given, ["MemoryError"], "builtins.MemoryError", ""),
        (tasks.raise_given, ["RecursionError", "x"], "builtins.RecursionError", "x"),
        (tasks.raise_with_nul, [], "builtins.ValueError", "before\\x00after \\udc80"),
        (tasks.raise_given, ["ValueError", "ö\U0001f600"], "builtins.ValueError", "ö\U0001f600"),
        (tasks.raise_given, ["ValueError", "%s {x}\n"], "builtins.ValueError", "%s {x}\n"),
        (tasks.raise_from_cause, [], "builtins.ValueError", "the effect"),
    ],
    ids=name_case,
)
def test_exceptions(task: Any, args: list[Any], exception_class: str, message: str) -> None:
    result = task.enqueue(*args)
    assert len(work()) == 1
    failed = failure_of(result)
    assert (failed.exception_class, failed.message) == (exception_class, message)


@pytest.mark.parametrize("name", ["UnprintableError", "ExitingError"])
def test_an_exception_whose_text_cannot_be_had(name: str) -> None:
    result = tasks.raise_given.enqueue(name)
    assert len(work()) == 1
    failed = failure_of(result)
    assert failed.exception_class == f"tests.project.tasks.{name}"
    assert "str()" in failed.message


def test_a_message_of_a_megabyte_keeps_its_ends() -> None:
    result = tasks.raise_given.enqueue("ValueError", "<--->", 200_000)
    work()
    failed = failure_of(result)
    for text in (failed.message, failed.traceback):
        assert len(text) < 70_000
        assert "characters left out" in text
    assert failed.message.startswith("<--->")
    assert failed.message.endswith("<--->")
    assert failed.traceback.startswith("Traceback")


def test_the_cause_is_in_the_traceback() -> None:
    result = tasks.raise_from_cause.enqueue()
    work()
    assert "KeyError: 'the cause'" in failure_of(result).traceback


@pytest.mark.parametrize(
    ("task", "args", "text"),
    [
        (tasks.return_set, [], "set"),
        (tasks.return_nan, [], "nan"),
        (tasks.return_nested, [DEEPEST + 1], "deep"),
        (tasks.return_nested, [100_000], "deep"),
        pytest.param(tasks.return_huge_int, [], "digits", marks=pytest.mark.needs("wide integers")),
        pytest.param(tasks.return_nul, [], "NUL", marks=needs_refusal_of_nul),
    ],
    ids=name_case,
)
def test_return_values_that_cannot_be_stored(task: Any, args: list[Any], text: str) -> None:
    result = task.enqueue(*args)
    assert len(work()) == 1
    failed = failure_of(result)
    assert failed.exception_class == "builtins.TypeError"
    assert text in failed.message


@needs_nul
def test_nul_is_returned_where_the_database_stores_it() -> None:
    result = tasks.return_nul.enqueue()
    work()
    result.refresh()
    assert result.return_value == "before\0after"


def test_the_deepest_return_value() -> None:
    result = tasks.return_nested.enqueue(DEEPEST)
    work()
    result.refresh()
    assert result.return_value == nested(DEEPEST)


def test_bad_tasks_do_not_harm_the_good_ones_of_their_batch() -> None:
    results = default_task_backend.enqueue_all(
        (task, args, {})
        for task, args in [
            (add, [1, 2]),
            (tasks.raise_system_exit, []),
            (tasks.return_set, []),
            (tasks.raise_with_nul, []),
            (tasks.raise_given, ["ExitingError"]),
            (add, [3, 4]),
        ]
    )
    assert len(work()) == 6
    assert states() == {"finished": 2, "failed": 4}
    fetched = [default_task_backend.get_result(each.id) for each in results]
    assert [fetched[0].return_value, fetched[-1].return_value] == [3, 7]


@pytest.mark.django_db(transaction=True)
def test_an_outcome_that_the_database_refuses(monkeypatch: Any) -> None:
    """Where our own check is wrong, the database's error is recorded, and the batch goes on."""
    monkeypatch.setattr(execution, "normalize", lambda value, limits: value)
    sent: list[TaskResult] = []

    def note(task_result: TaskResult, **kwargs: Any) -> None:
        sent.append(task_result)

    task_finished.connect(note)
    bad, good = tasks.return_nan.enqueue(), add.enqueue(1, 2)
    try:
        assert len(work()) == 2
    finally:
        task_finished.disconnect(note)
    assert states() == {"finished": 1, "failed": 1}
    good.refresh()
    assert good.return_value == 3
    assert FailedExecution.objects.get().exception_class.startswith("django.db.utils.")
    bad.refresh()
    assert {each.id: each.status for each in sent} == {bad.id: bad.status, good.id: good.status}


def test_a_payload_that_is_none_of_ours() -> None:
    """Somebody edited the row."""
    add.enqueue(1, 2)
    Job.objects.update(payload={"unexpected": 1})
    assert len(work()) == 1
    assert states() == {"failed": 1}
    assert FailedExecution.objects.get().exception_class == "dj_queue.exceptions.UnreadableJobError"


def test_a_job_deleted_while_it_runs() -> None:
    add.enqueue(1, 2)
    jobs = run(claim())
    Job.objects.all().delete()
    assert execution.finish(backend_config(), jobs, worker=WORKER) == []
    assert not FailedExecution.objects.exists()


# ---- concurrency options ----------------------------------------------------------------------------


@pytest.fixture
def options(monkeypatch: Any) -> Callable[..., None]:
    """Give `add` options, as a project does on Django 6.0: on the function."""

    def give(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(add.func, name, value, raising=False)

    return give


def raise_lookup_error(*args: Any, **kwargs: Any) -> str:
    raise LookupError("no key for you")


BAD_OPTIONS: dict[str, dict[str, Any]] = {
    "limit missing": {"concurrency_limit": None},
    "limit 0": {"concurrency_limit": 0},
    "limit negative": {"concurrency_limit": -1},
    "limit a bool": {"concurrency_limit": True},
    "limit text": {"concurrency_limit": "1"},
    "limit a float": {"concurrency_limit": 1.0},
    "limit larger than its column": {"concurrency_limit": 2**31},
    "key empty": {"concurrency_key": ""},
    "key empty once resolved": {"concurrency_key": lambda a, b: ""},
    "key of 256 characters": {"concurrency_key": "k" * 256},
    "key of 256 characters once resolved": {"concurrency_key": "{a:0256}"},
    "key not text": {"concurrency_key": 5},
    "key not text once resolved": {"concurrency_key": lambda a, b: a},
    "key None once resolved": {"concurrency_key": lambda a, b: None},
    "key with NUL": {"concurrency_key": lambda a, b: "a\0b"},
    "key with a lone surrogate": {"concurrency_key": lambda a, b: "\udc80"},
    "key template naming no argument": {"concurrency_key": "{c}"},
    "key template by position": {"concurrency_key": "{0}"},
    "key template without name": {"concurrency_key": "{}"},
    "key template with an unknown attribute": {"concurrency_key": "{a.missing}"},
    "key template cut short": {"concurrency_key": "{a"},
    "key callable raising": {"concurrency_key": raise_lookup_error},
    "key callable with other arguments": {"concurrency_key": lambda only: "k"},
    "on_conflict unknown": {"on_conflict": "replace"},
    "on_conflict empty": {"on_conflict": ""},
    "on_conflict a bool": {"on_conflict": False},
    "on_conflict not hashable": {"on_conflict": ["block"]},
    "duration 0": {"concurrency_duration": 0},
    "duration negative": {"concurrency_duration": -1},
    "duration text": {"concurrency_duration": "180"},
    "duration a bool": {"concurrency_duration": True},
    "duration NaN": {"concurrency_duration": float("nan")},
    "duration infinite": {"concurrency_duration": float("inf")},
    "duration past the calendar": {"concurrency_duration": 1e12},
    "duration past all numbers": {"concurrency_duration": 10**400},
    "duration a negative timedelta": {"concurrency_duration": timedelta(-1)},
}
HOW: dict[str, Callable[[], Any]] = {
    "at once": lambda: add.enqueue(1, b=2),
    "scheduled": lambda: add.using(run_after=timezone.now() + timedelta(days=1)).enqueue(1, b=2),
    "in bulk": lambda: default_task_backend.enqueue_all([(echo, [], {}), (add, [1], {"b": 2})]),
    "on commit": lambda: enqueue_on_commit(add, 1, b=2),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("bad", BAD_OPTIONS)
def test_concurrency_options_that_are_wrong(options: Callable[..., None], bad: str, how: str) -> None:
    options(**{"concurrency_key": "{a}", "concurrency_limit": 1, **BAD_OPTIONS[bad]})
    with pytest.raises(EnqueueError, match=r"tests\.project\.tasks\.add"):
        HOW[how]()
    assert Job.objects.count() == Semaphore.objects.count() == 0


@pytest.mark.parametrize(
    ("args", "kwargs"), [([], {}), ([1], {}), ([1, 2, 3], {}), ([1], {"a": 1, "b": 2}), ([1, 2], {"c": 3})]
)
@pytest.mark.parametrize("key", ["constant", "{a}", lambda *args, **kwargs: "k"], ids=name_case)
def test_a_key_needs_arguments_that_fit_the_task(
    options: Callable[..., None], key: Any, args: list[Any], kwargs: dict[str, Any]
) -> None:
    options(concurrency_key=key, concurrency_limit=1)
    with pytest.raises(EnqueueError) as caught:
        add.enqueue(*args, **kwargs)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "1"),
        ({"concurrency_key": "x:{a}:{b}"}, "x:1:2"),
        ({"concurrency_key": "{{{a}}}"}, "{1}"),
        ({"concurrency_key": "k" * 255}, "k" * 255),
        ({"concurrency_key": lambda a, b: f"{a}/{b}"}, "1/2"),
        ({"concurrency_limit": 2**31 - 1}, "1"),
        ({"concurrency_duration": 0.5}, "1"),
        ({"concurrency_duration": timedelta(days=365)}, "1"),
        ({"on_conflict": None}, "1"),
        ({"on_conflict": "discard"}, "1"),
    ],
    ids=name_case,
)
def test_concurrency_options_that_are_right(options: Callable[..., None], given: dict[str, Any], key: str) -> None:
    options(**{"concurrency_key": "{a}", "concurrency_limit": 1, **given})
    add.enqueue(1, b=2)
    assert Job.objects.get().concurrency_key == Semaphore.objects.get().key == key


@pytest.mark.parametrize(
    ("task", "key", "args", "resolved"),
    [
        (tasks.fail, "{message}", [], "it failed"),
        (tasks.describe_context, "{label}", ["x"], "x"),
        (tasks.describe_context, "{context}", ["x"], None),
    ],
    ids=["default", "beside the context", "the context itself"],
)
def test_a_key_sees_defaults_and_no_context(
    monkeypatch: Any, task: Any, key: str, args: list[Any], resolved: str | None
) -> None:
    monkeypatch.setattr(task.func, "concurrency_key", key, raising=False)
    monkeypatch.setattr(task.func, "concurrency_limit", 1, raising=False)
    if resolved is None:
        with pytest.raises(EnqueueError):
            task.enqueue(*args)
    else:
        task.enqueue(*args)
        assert Job.objects.get().concurrency_key == resolved


def test_a_limit_without_a_key_limits_nothing(options: Callable[..., None]) -> None:
    options(concurrency_limit=1)
    for _ in range(2):
        add.enqueue(1, 2)
    assert states() == {"ready": 2}
    assert not Semaphore.objects.exists()


def test_a_wrong_option_does_not_break_the_transaction_of_its_caller(options: Callable[..., None]) -> None:
    options(concurrency_key="{a}")
    with transaction.atomic():
        with pytest.raises(EnqueueError):
            add.enqueue(1, 2)
        echo.enqueue()
    assert states() == {"ready": 1}


def test_a_limited_job_that_fails_frees_its_slot() -> None:
    results = [one_per_key.enqueue("k") for _ in range(2)]
    Job.objects.filter(pk=results[0].id).update(task_path="tests.project.tasks.no_such_task")
    assert len(work()) == 1
    assert states() == {"failed": 1, "ready": 1}
    assert len(work()) == 1
    assert states() == {"failed": 1, "finished": 1}
