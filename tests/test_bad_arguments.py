"""What is refused at enqueue, in Django's own words, at a cost that grows with the arguments and no faster."""

import time
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.tasks import default_task_backend
from django.tasks.exceptions import InvalidTask
from django.utils import timezone as zones

from dj_queue.api import QueueInfo, concurrency, enqueue_on_commit
from dj_queue.config import backend_config
from dj_queue.exceptions import EnqueueError, NotJSONError
from dj_queue.models import FailedExecution, Job, ReadyExecution
from dj_queue.operations import jobs
from dj_queue.operations.concurrency import limit_of
from dj_queue.serialization import JSONLimits, normalize
from tests.project.tasks import add, echo, one_per_key, return_given, return_set
from tests.working import work

LIMITS = JSONLimits(depth=500)


class TestDjangosOwnWords:
    pytestmark = pytest.mark.django_db

    @pytest.mark.parametrize("value", [{1}, object(), date(2026, 1, 1)], ids=["set", "object", "date"])
    def test_a_type_that_json_lacks(self, value: Any) -> None:
        for call in (lambda: echo.enqueue(value), lambda: echo.enqueue(deep=[{"a": value}])):
            with pytest.raises(TypeError, match="Unsupported type") as caught:
                call()
            assert f"Unsupported type: {type(value)}" in str(caught.value)
            assert isinstance(caught.value, EnqueueError)

    def test_bytes_that_are_not_utf8(self) -> None:
        for call in (lambda: echo.enqueue(b"\xff"), lambda: enqueue_on_commit(echo, [b"\xff"])):
            with pytest.raises(ValueError, match="Unsupported value: <class 'bytes'>") as caught:
                call()
            assert isinstance(caught.value, EnqueueError)

    def test_what_a_task_returns(self) -> None:
        result = return_set.enqueue()
        work()
        failed = FailedExecution.objects.get()
        assert failed.exception_class == "builtins.TypeError"
        assert "Unsupported type: <class 'set'>" in failed.message
        result.refresh()
        assert result.errors[0].exception_class is TypeError


@pytest.mark.pure  # no database has a part in it
class TestCost:
    """Each of these took minutes, or all memory, where a path was written for every value."""

    @pytest.mark.parametrize(
        "value",
        [
            {"k" * 1_000_000: [0] * 20_000},
            {f"{n}" + "k" * 10_000: {"a": [0] * 20} for n in range(500)},
            [[["x" * 1_000_000] * 5]],
        ],
        ids=["a long key", "many long keys", "long texts"],
    )
    def test_is_linear(self, value: Any) -> None:
        began = time.monotonic()
        assert normalize(value, LIMITS) == value
        assert time.monotonic() - began < 10

    def test_deep_nesting_under_long_keys(self) -> None:
        value: Any = 0
        for _ in range(400):
            value = {"k" * 10_000: value}
        began = time.monotonic()
        normalize(value, LIMITS)
        assert time.monotonic() - began < 10

    def test_lists_that_hold_each_other_many_times(self) -> None:
        value: Any = [0] * 100
        for _ in range(30):
            value = [value] * 100
        with pytest.raises(NotJSONError, match="more than 10,000,000 values"):
            normalize(value, LIMITS)

    def test_a_message_is_short_whatever_the_value(self) -> None:
        class Loud:
            def __repr__(self) -> str:
                return "x" * 1_000_000

            __hash__ = object.__hash__

        class Broken:
            def __repr__(self) -> str:
                raise RuntimeError

        for value in ({"k" * 1_000_000: {1}}, {Loud(): 1}, {Broken(): 1}, {10**5000: 1}, {("x" * 1_000_000,): 1}):
            with pytest.raises(NotJSONError) as caught:
                normalize(value, LIMITS)
            assert len(str(caught.value)) < 500


class Odd(tzinfo):
    def utcoffset(self, moment: Any) -> Any:
        raise RuntimeError("no offset")


class TestDates:
    pytestmark = pytest.mark.django_db

    @pytest.mark.parametrize(
        "run_after",
        [
            datetime.min.replace(tzinfo=UTC),
            datetime.min.replace(tzinfo=ZoneInfo("Asia/Tokyo")),
            datetime.max.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=ZoneInfo("America/New_York")),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-23, minutes=-59))),
            datetime(999, 12, 31, tzinfo=UTC),
            datetime(1000, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo")),
            datetime(9999, 12, 31, tzinfo=UTC),
        ],
        ids=str,
    )
    def test_beyond_what_every_database_holds(self, run_after: datetime) -> None:
        for task in (add.using(run_after=run_after), one_per_key.using(run_after=run_after)):
            for call in (
                lambda task=task: task.enqueue(1, 2),
                lambda task=task: default_task_backend.enqueue_all([(add, [1, 2], {}), (task, [1, 2], {})]),
                lambda task=task: jobs.prepare(backend_config(), task, [1, 2], {}),
                lambda task=task: enqueue_on_commit(task, 1, 2),
            ):
                with pytest.raises(EnqueueError, match="run_after must be a datetime from the year 1000"):
                    call()
        assert not Job.objects.exists()

    def test_a_time_zone_that_fails(self) -> None:
        with pytest.raises((EnqueueError, RuntimeError, InvalidTask)):
            add.using(run_after=datetime(2026, 1, 1, tzinfo=Odd())).enqueue(1, 2)
        assert not Job.objects.exists()

    @pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
    @pytest.mark.parametrize("edge", [datetime(1000, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)], ids=str)
    def test_the_edges_can_be_read_in_every_zone(self, edge: datetime, zone: str, settings: Any) -> None:
        settings.TIME_ZONE = zone
        result = add.using(run_after=edge).enqueue(1, 2)
        fetched = default_task_backend.get_result(result.id)
        assert fetched.task.run_after == edge
        assert zones.localtime(fetched.task.run_after).year in (999, 1000, 9999)
        past = edge.year == 1000
        assert len(work()) == past

    @pytest.mark.parametrize("aware", [True, False], ids=["aware", "naive"])
    def test_without_use_tz(self, aware: bool, settings: Any) -> None:
        settings.USE_TZ = False
        at = datetime(9999, 12, 31)
        with pytest.raises(EnqueueError, match="run_after"):
            add.using(run_after=at.replace(tzinfo=UTC) if aware else at).enqueue(1, 2)

    def test_an_aware_date_without_use_tz_is_the_projects_local_time(self, settings: Any) -> None:
        settings.USE_TZ = False
        later = datetime.now(UTC) + timedelta(days=1)
        result = add.using(run_after=later).enqueue(1, 2)
        assert result.task.run_after == zones.make_naive(later)


class TestKeys:
    @pytest.mark.parametrize(
        "key",
        ["{a:1000000000}", "{a:>{b}}", "{a:.1000000000f}", "{a.__class__.__mro__}", "{a!r:99999999}", "{missing}", "{"],
    )
    def test_hostile_formats(self, key: str) -> None:
        task = concurrency(key=key)(add.using())
        try:
            began = time.monotonic()
            with pytest.raises(EnqueueError) as caught:
                limit_of(task, [1, 10**9], {}, default_duration=1)
            assert time.monotonic() - began < 5
            assert len(str(caught.value)) < 1000
        finally:
            del add.func.concurrency_key

    @pytest.mark.parametrize(
        ("key", "found"), [("{a}-{b}", "1-x"), ("{a:05}", "00001"), ("{b!r}", "'x'"), ("{c[k]}{{", "3{")]
    )
    def test_usual_formats(self, key: str, found: str) -> None:
        from dj_queue import key_format

        assert key_format.resolve(key, {"a": 1, "b": "x", "c": {"k": 3}}) == found

    def test_the_error_is_short(self) -> None:
        task = concurrency(key="{a}" + "x" * 1_000_000)(add.using())
        try:
            for kwargs in ({"b": 1, "n" * 1_000_000: 1}, {"b": "x" * 1_000_000}):
                with pytest.raises(EnqueueError) as caught:
                    limit_of(task, [1], kwargs, default_duration=1)
                assert len(str(caught.value)) < 1000
        finally:
            del add.func.concurrency_key


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["a\0", "\ud800", "\0*", "a\udc80*"], ids=ascii)
class TestSelectors:
    def test_of_a_claim_by_hand(self, name: str) -> None:
        add.enqueue(1, 2)
        for queues in (name, ["*", name]):
            with pytest.raises(ValueError, match="expected a queue name"):
                jobs.claim_ready_jobs(limit=1, queues=queues)
        assert ReadyExecution.objects.count() == 1

    def test_of_a_worker(self, name: str, settings: Any) -> None:
        from django.core.exceptions import ImproperlyConfigured

        settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"workers": {"queues": name}}}}
        with pytest.raises(ImproperlyConfigured, match="a queue name"):
            backend_config()

    def test_of_a_queue(self, name: str) -> None:
        with pytest.raises(ValueError, match="expected a queue name"):
            QueueInfo(name)


@pytest.mark.django_db
def test_a_large_argument_is_returned_whole() -> None:
    value = {"k" * 10_000: ["x" * 1000] * 100}
    result = return_given.enqueue(value)
    work()
    assert default_task_backend.get_result(result.id).return_value == value
