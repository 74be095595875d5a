"""What is deleted, when, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.tasks import task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, Job, RecurringExecution, Semaphore
from dj_queue.operations import retention
from dj_queue.runtime.scheduler import Scheduler
from tests.project import tasks
from tests.working import claim, states, work

pytestmark = pytest.mark.django_db(transaction=True)

DAY = 86400


def ago(seconds: float) -> Any:
    return timezone.now() - timedelta(seconds=seconds)


def finished(*ages: float, alias: str = "default", task: Any = tasks.add, args: Any = (1, 2)) -> list[Any]:
    """Store jobs that finished so many seconds ago."""
    ids = []
    for age in ages:
        ids.append(task.using(backend=alias).enqueue(*args).id)
        assert len(work(alias=alias)) == 1
        Job.objects.filter(pk=ids[-1]).update(created_at=ago(age + 1), finished_at=ago(age))
    return ids


def failed(*ages: float, alias: str = "default", task: Any = tasks.fail, args: Any = ()) -> list[Any]:
    ids = []
    for age in ages:
        ids.append(task.using(backend=alias).enqueue(*args).id)
        assert len(work(alias=alias)) == 1
        Job.objects.filter(pk=ids[-1]).update(created_at=ago(age + 1))
        FailedExecution.objects.filter(job_id=ids[-1]).update(created_at=ago(age))
    return ids


def ticks(key: str, *ages: float, alias: str = "default") -> None:
    for age in ages:
        RecurringExecution.objects.create(backend_alias=alias, task_key=key, run_at=ago(age))


def left() -> set[str]:
    return {str(pk) for pk in Job.objects.values_list("pk", flat=True)}


def tick_count(key: str, alias: str = "default") -> int:
    return RecurringExecution.objects.filter(task_key=key, backend_alias=alias).count()


# ---- the functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_finished_jobs_go_by_the_time_they_finished(batch: int, two_aliases: None) -> None:
    old, young = finished(100, 200, 300), finished(10)
    theirs = finished(300, alias="other")
    lost = failed(300)
    waiting = tasks.add.enqueue(1, 2).id
    Job.objects.filter(pk=waiting).update(created_at=ago(1000))
    config = backend_config()
    deleted = []
    while count := retention.delete_finished(config, older_than=60, batch_size=batch):
        deleted.append(count)
    assert sum(deleted) == 3
    assert max(deleted) <= batch
    assert left() == {*young, *theirs, waiting, *lost}
    assert not left() & set(old)


def test_a_job_that_waited_long_goes_by_its_finish() -> None:
    (job,) = finished(10)
    Job.objects.update(created_at=ago(1000))
    assert retention.delete_finished(backend_config(), older_than=60) == 0
    assert left() == {job}


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_failed_jobs_go_by_the_time_they_failed(batch: int, two_aliases: None) -> None:
    failed(100, 200, 300)
    young, theirs, done = failed(10), failed(300, alias="other"), finished(300)
    Job.objects.filter(pk__in=young).update(created_at=ago(1000))
    config = backend_config()
    deleted = []
    while count := retention.delete_failed(config, older_than=60, batch_size=batch):
        deleted.append(count)
    assert sum(deleted) == 3
    assert max(deleted) <= batch
    assert left() == {*young, *theirs, *done}


def test_what_waits_or_runs_never_goes() -> None:
    tasks.add.using(run_after=timezone.now() + timedelta(days=1)).enqueue(1, 2)
    tasks.one_per_key.enqueue("k")
    tasks.one_per_key.enqueue("k")
    tasks.add.enqueue(1, 2)
    claim(1)
    Job.objects.update(created_at=ago(10 * DAY), updated_at=ago(10 * DAY))
    before = states()
    assert set(before) == {"scheduled", "ready", "blocked", "claimed"}
    config = backend_config()
    assert retention.delete_finished(config, older_than=0) == 0
    assert retention.delete_failed(config, older_than=0) == 0
    assert states() == before
    assert Semaphore.objects.count() == 1


def test_only_one_task() -> None:
    mine, others = finished(100, task=tasks.echo, args=()), finished(100)
    mine_failed, others_failed = failed(100, task=tasks.raise_empty), failed(100)
    config = backend_config()
    assert retention.delete_finished(config, older_than=60, task_path="tests.project.tasks.echo") == 1
    assert retention.delete_failed(config, older_than=60, task_path="tests.project.tasks.raise_empty") == 1
    assert left() == {*others, *others_failed}
    assert not left() & {*mine, *mine_failed}


def test_a_discarded_job_goes_like_a_finished_one() -> None:
    tasks.one_or_none.enqueue("k")
    discarded = tasks.one_or_none.enqueue("k").id
    Job.objects.update(created_at=ago(100))
    Job.objects.filter(pk=discarded).update(finished_at=ago(100))
    assert retention.delete_finished(backend_config(), older_than=60) == 1
    assert states() == {"ready": 1}


# ---- the command ------------------------------------------------------------------------------------


def prune(*arguments: str) -> str:
    out = StringIO()
    call_command("dj_queue_prune", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def said(finished_: int, failed_: int, recurring: int, verb: str = "deleted") -> str:
    return f"{verb} {finished_} finished jobs, {failed_} failed jobs, and {recurring} recurring executions\n"


@pytest.fixture
def stored(two_aliases: None) -> Iterator[None]:
    """Of each kind: two a week old, two a day and a bit, one a minute; and as old ones of another alias."""
    for alias in ("default", "other"):
        finished(7 * DAY, 7 * DAY, DAY + 60, DAY + 60, 60, alias=alias)
        failed(7 * DAY, 7 * DAY, DAY + 60, DAY + 60, 60, alias=alias)
        ticks("nightly", 7 * DAY, DAY + 60, 60, alias=alias)
        ticks("weekly", 7 * DAY + 1, DAY + 61, alias=alias)
    yield
    # Whatever was asked, the other alias has all of its rows.
    assert Job.objects.filter(backend_alias="other").count() == 10
    assert RecurringExecution.objects.filter(backend_alias="other").count() == 5


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), (4, 0, 0)),  # what the options say
        (("--older-than", "604000"), (2, 0, 0)),
        (("--older-than", "0"), (5, 0, 0)),
        (("--failed-older-than", "604000"), (4, 2, 0)),
        (("--failed-older-than", "0.5", "--older-than", "99999999"), (0, 5, 0)),
        (("--recurring-older-than", "604000"), (4, 0, 2)),
        (("--recurring-older-than", "0"), (4, 0, 3)),  # and never a task's newest
        (("--older-than", "1", "--failed-older-than", "1", "--recurring-older-than", "1"), (5, 5, 3)),
        (("--recurring-older-than", "0", "--task-key", "weekly"), (4, 0, 1)),
        (("--recurring-older-than", "0", "--task-key", "nothing"), (4, 0, 0)),
        (("--failed-older-than", "0", "--task-path", "tests.project.tasks.add"), (4, 0, 0)),
        (("--failed-older-than", "0", "--task-path", "tests.project.tasks.fail"), (0, 5, 0)),
        (("--task-path", "add"), (0, 0, 0)),
    ],
    ids=str,
)
def test_prune(
    arguments: tuple[str, ...], expected: tuple[int, int, int], batch: int | None, dry: bool, stored: None
) -> None:
    flags = [*arguments, *(["--batch-size", str(batch)] if batch else []), *(["--dry-run"] if dry else [])]
    before = (Job.objects.count(), RecurringExecution.objects.count())
    assert prune(*flags) == said(*expected, verb="would delete" if dry else "deleted")
    gone = (0, 0) if dry else (expected[0] + expected[1], expected[2])
    assert (Job.objects.count(), RecurringExecution.objects.count()) == (before[0] - gone[0], before[1] - gone[1])
    if not dry:
        assert prune(*flags) == said(0, 0, 0)


def test_prune_takes_its_ages_from_the_options(configure: Any) -> None:
    configure(
        clear_finished_jobs_after=None,
        clear_failed_jobs_after=1000,
        clear_recurring_executions_after=1000,
        other={"clear_finished_jobs_after": 1000},
    )
    for alias in ("default", "other"):
        finished(2000, alias=alias)
        failed(2000, 10, alias=alias)
        ticks("k", 2000, 10, alias=alias)
    assert prune() == said(0, 1, 1)
    assert prune("--backend", "other") == said(1, 0, 0)
    assert tick_count("k") == 1
    assert tick_count("k", "other") == 2


def test_prune_says_how_far_it_is() -> None:
    Job.objects.bulk_create(Job(task_path="x", finished_at=ago(2 * DAY), created_at=ago(2 * DAY)) for _ in range(45))
    out, err = StringIO(), StringIO()
    call_command("dj_queue_prune", "--batch-size", "1", stdout=out, stderr=err)
    assert out.getvalue() == said(45, 0, 0)
    assert err.getvalue().split("\n") == ["20 finished jobs so far", "40 finished jobs so far", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--older-than", "-1"), "--older-than must be a number of seconds from 0 to 3153600000 .100 years., got -1"),
        (("--failed-older-than", "-0.5"), "--failed-older-than must be a number of seconds"),
        (("--recurring-older-than", "-1"), "--recurring-older-than must be a number of seconds"),
        (("--older-than", "1e300"), "--older-than"),
        (("--failed-older-than", "inf"), "--failed-older-than"),
        (("--recurring-older-than", "nan"), "--recurring-older-than"),
        (("--older-than", "soon"), "soon"),
        (("--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--batch-size", "-5"), "--batch-size"),
        (("--batch-size", "many"), "many"),
        (("--backend", "nothing"), "nothing"),
    ],
    ids=str,
)
def test_prune_refuses(arguments: tuple[str, ...], message: str) -> None:
    finished(7 * DAY)
    with pytest.raises(CommandError, match=message.replace("-", r"\-")):
        prune(*arguments)
    assert states() == {"finished": 1}


# ---- the scheduler ----------------------------------------------------------------------------------


@pytest.fixture
def scheduler(monkeypatch: Any) -> Iterator[Any]:
    made: list[Scheduler] = []
    monkeypatch.setattr(retention, "BATCH", 2)

    def make(alias: str = "default") -> Scheduler:
        config = backend_config(alias)
        assert config.scheduler is not None
        made.append(Scheduler(config, config.scheduler, "scheduler-1"))
        return made[-1]

    yield make
    for each in made:
        each.wakeup.close()


def test_the_scheduler_cleans_a_batch_of_each_kind_a_step(configure: Any, scheduler: Any) -> None:
    configure(clear_finished_jobs_after=60, clear_failed_jobs_after=60, clear_recurring_executions_after=60, other={})
    finished(*[100] * 5)
    failed(*[100] * 3)
    ticks("k", 100, 110, 120, 130)
    finished(10)
    finished(100, alias="other")
    runner = scheduler()
    counts = []
    for _ in range(4):
        pause = runner.step()
        counts.append((Job.objects.finished().count(), Job.objects.failed().count(), tick_count("k")))
        assert pause <= (0.05 if len(counts) < 3 else 5)  # where more is left, it goes on at once
    assert counts == [(5, 1, 2), (3, 0, 1), (2, 0, 1), (2, 0, 1)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0, 1, 1)),  # of the ticks, whose jobs are gone, the newest
        ({"clear_finished_jobs_after": None}, (1, 1, 1)),
        ({"preserve_finished_jobs": False}, (0, 1, 1)),
        ({"preserve_finished_jobs": False, "clear_finished_jobs_after": None}, (0, 1, 1)),
        ({"preserve_finished_jobs": False, "clear_finished_jobs_after": 3 * DAY}, (1, 1, 1)),
        ({"clear_failed_jobs_after": 5}, (0, 0, 1)),
        ({"clear_recurring_executions_after": 5}, (0, 1, 1)),
        ({"clear_finished_jobs_after": 0}, (0, 1, 1)),
        ({"clear_recurring_executions_after": 9 * DAY}, (0, 1, 2)),
    ],
    ids=str,
)
def test_the_scheduler_deletes_what_its_options_say(
    options: dict[str, Any], expected: tuple[int, int, int], configure: Any, scheduler: Any
) -> None:
    finished(2 * DAY)
    failed(2 * DAY)
    ticks("k", 2 * DAY, 3 * DAY)
    configure(**options)
    scheduler().step()
    assert (Job.objects.finished().count(), Job.objects.failed().count(), tick_count("k")) == expected


def test_the_scheduler_cleans_its_own_alias(configure: Any, scheduler: Any) -> None:
    configure(other={"clear_finished_jobs_after": None})
    finished(2 * DAY)
    finished(2 * DAY, alias="other")
    scheduler("other").step()
    assert states() == {"finished": 2}
    scheduler().step()
    assert list(Job.objects.values_list("backend_alias", flat=True)) == ["other"]


def test_a_result_outlives_nothing_else() -> None:
    """A retained result can be read; a deleted one is unknown."""
    (job,) = finished(100)
    assert task_backends["default"].get_result(job).return_value == 3
    assert retention.delete_finished(backend_config(), older_than=60) == 1
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(job)
