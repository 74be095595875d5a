"""Queues as operators see them, and which jobs a worker's selectors find, in which order."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction
from django.db.models import F
from django.tasks import task_backends
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Job, Pause, ReadyExecution
from dj_queue.operations import execution, jobs
from tests.project import tasks
from tests.working import claim, run, states, work

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)


def fill(*queues: str, alias: str = "default", task: Any = tasks.add, args: Any = (1, 2), **using: Any) -> list[str]:
    """Enqueue a job in each of these queues, in this order; return their ids."""
    calls = [(task.using(queue_name=name, backend=alias, **using), list(args), {}) for name in queues]
    return [result.id for result in task_backends[alias].enqueue_all(calls)]


def claimed(*selectors: str, limit: int = 100, alias: str = "default") -> list[str]:
    """The queues of the jobs that a claim returns, in its order; then everything is as before."""
    found = claim(limit, queues=selectors, alias=alias)
    execution.release(backend_config(alias), found)
    return [job.claim.queue_name for job in found]


def aged(queue: str, seconds: float) -> None:
    ReadyExecution.objects.filter(queue_name=queue).update(created_at=timezone.now() - seconds * SECOND)


# ---- QueueInfo --------------------------------------------------------------------------------------


def test_size_counts_ready_jobs(two_aliases: None) -> None:
    info = QueueInfo("q")
    assert info.size == 0
    fill("q", "q", "q", "Q", "qq")
    fill("q", run_after=timezone.now() + 60 * SECOND)
    fill("q", alias="other")
    fill("q", "q", task=tasks.one_per_key, args=["k"])
    assert info.size == 4
    assert QueueInfo("q", backend_alias="other").size == 1
    claim(3, queues=["q"])
    assert info.size == 1
    assert QueueInfo("Q").size == 1
    assert QueueInfo("%").size == QueueInfo("_").size == QueueInfo("*").size == 0


def test_what_it_says_of_itself() -> None:
    info = QueueInfo("q", backend_alias="other")
    assert (info.queue_name, info.backend_alias) == ("q", "other")
    assert repr(info) == "QueueInfo('q', backend_alias='other')"
    with pytest.raises(ImproperlyConfigured, match="other"):
        info.size  # noqa: B018
    with pytest.raises(TypeError):
        QueueInfo("q", "other")  # type: ignore[misc]


def test_latency_is_that_of_the_oldest_ready_job(two_aliases: None) -> None:
    info = QueueInfo("q")
    assert info.latency == 0.0
    assert isinstance(info.latency, float)
    fill("q")
    aged("q", 100)
    fill("q")
    assert 100 <= info.latency < 110
    assert QueueInfo("q", backend_alias="other").latency == 0.0
    claim(1, queues=["q"])
    assert 0 <= info.latency < 10


def test_latency_without_the_time_of_a_pause() -> None:
    info = QueueInfo("q")
    fill("q")
    aged("q", 100)
    info.pause()
    Pause.objects.update(created_at=timezone.now() - 60 * SECOND)
    late = fill("q")  # during the pause
    ReadyExecution.objects.filter(job_id=late[0]).update(created_at=timezone.now() - 30 * SECOND)
    info.resume()
    assert 40 <= info.latency < 45
    claim(1)
    assert 0 <= info.latency < 5


def test_latency_after_two_pauses() -> None:
    info = QueueInfo("q")
    fill("q")
    aged("q", 100)
    for seconds in (30, 20):
        info.pause()
        Pause.objects.update(created_at=timezone.now() - seconds * SECOND)
        info.resume()
    assert 50 <= info.latency < 55


def test_resume_leaves_other_queues_and_aliases_alone(two_aliases: None) -> None:
    fill("q", "q2")
    fill("q", alias="other")
    ReadyExecution.objects.update(created_at=F("created_at") - 100 * SECOND)
    QueueInfo("q").pause()
    Pause.objects.update(created_at=F("created_at") - 60 * SECOND)
    QueueInfo("q").resume()
    assert QueueInfo("q").latency < 50
    assert QueueInfo("q2").latency > 90
    assert QueueInfo("q", backend_alias="other").latency > 90


def test_pausing_twice_and_resuming_twice(caplog: Any) -> None:
    info = QueueInfo("q")
    with caplog.at_level("INFO", "dj_queue"):
        info.resume()
        for _ in range(2):
            info.pause()
            assert info.paused
        first = Pause.objects.get()
        info.pause()
        assert Pause.objects.get() == first
        for _ in range(2):
            info.resume()
            assert not info.paused
    assert [(record.event, record.dj_queue) for record in caplog.records] == [
        ("queue.paused", {"queue_name": "q"}),
        ("queue.resumed", {"queue_name": "q"}),
    ]
    assert not Pause.objects.exists()


def test_pausing_at_once() -> None:
    def toggle(n: int) -> None:
        try:
            info = QueueInfo("q")
            for _ in range(10):
                info.pause()
                info.resume()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(toggle, range(4)))
    assert not QueueInfo("q").paused


@pytest.mark.parametrize("name", ["", "x" * 65, "a\0b", None, 7])
def test_a_name_that_no_queue_can_have_is_not_paused(name: Any) -> None:
    with pytest.raises(ValueError, match="expected a queue name of 1 to 64 characters"):
        QueueInfo(name).pause()
    assert not Pause.objects.exists()


def test_a_pause_stops_claims_and_nothing_else(two_aliases: None) -> None:
    info = QueueInfo("q")
    running = fill("q", task=tasks.one_per_key, args=["k"])
    blocked = fill("q", task=tasks.one_per_key, args=["k"])
    fill("q", alias="other")
    later = fill("q", run_after=timezone.now() + 60 * SECOND)
    held = claim(1)
    info.pause()
    assert not QueueInfo("q", backend_alias="other").paused
    assert not QueueInfo("other").paused
    fill("q")  # enqueueing goes on
    job = Job.objects.get(pk=later[0])
    job.scheduled_execution.scheduled_at = timezone.now() - SECOND
    job.scheduled_execution.save()
    assert jobs.promote_scheduled_jobs(batch_size=5) == 1  # promotion too
    assert len(execution.finish(backend_config(), run(held), worker="w")) == 1  # and what runs
    assert Job.objects.get(pk=running[0]).status == "finished"
    assert Job.objects.get(pk=blocked[0]).status == "ready"  # and who waited for it
    assert claim() == []
    assert claimed("q", alias="other") == ["q"]
    info.resume()
    assert len(claim()) == 3


def test_clear(two_aliases: None, caplog: Any) -> None:
    gone = fill("q", "q", "q")
    fill("Q", "qq")
    fill("q", alias="other")
    fill("q", run_after=timezone.now() + 60 * SECOND)
    with caplog.at_level("INFO", "dj_queue"):
        assert QueueInfo("q").clear(batch_size=2) == 3
    told = [record.dj_queue for record in caplog.records if record.msg == "job.discarded"]
    assert told == [{"job_id": job_id, "reason": "ready"} for job_id in gone]
    assert not Job.objects.filter(pk__in=gone).exists()
    assert states() == {"ready": 3, "scheduled": 1}
    assert QueueInfo("q").clear() == 0
    QueueInfo("qq").pause()
    assert QueueInfo("qq").clear() == 1


def test_clear_starts_who_waited_elsewhere() -> None:
    fill("q", task=tasks.one_per_key, args=["k"])
    fill("elsewhere", task=tasks.one_per_key, args=["k"])
    assert QueueInfo("q").clear() == 1
    assert [info.queue_name for info in QueueInfo.all()] == ["elsewhere"]


def test_clear_while_workers_claim() -> None:
    """A job is cleared or it runs: none is lost, none does both."""
    ids = set(fill(*["q"] * 400))

    def clear(n: int) -> int:
        try:
            return sum(QueueInfo("q").clear(batch_size=7) for _ in range(3))
        finally:
            connections.close_all()

    def take(n: int) -> list[str]:
        found = []
        try:
            while some := work(5):
                found += [str(job.claim.job_id) for job in some]
        finally:
            connections.close_all()
        return found

    with ThreadPoolExecutor(4) as pool:
        takers = [pool.submit(take, n) for n in range(2)]
        clearers = [pool.submit(clear, n) for n in range(2)]
        ran = [job_id for each in takers for job_id in each.result()]
        cleared = sum(each.result() for each in clearers)
    cleared += QueueInfo("q").clear()
    ran += [str(job.claim.job_id) for job in work(400)]
    assert len(ran) == len(set(ran))
    assert len(ran) + cleared == 400
    assert {str(pk) for pk in Job.objects.values_list("pk", flat=True)} == set(ran) <= ids
    assert states() == {"finished": len(ran)}


def test_all_names_the_queues_with_ready_jobs(two_aliases: None) -> None:
    assert QueueInfo.all() == []
    fill("b", "a", "b", "é", "Z")
    fill("only-other", alias="other")
    fill("later", run_after=timezone.now() + 60 * SECOND)
    found = QueueInfo.all()
    assert {info.queue_name for info in found} == {"a", "b", "é", "Z"}
    names = ReadyExecution.objects.filter(backend_alias="default").order_by("queue_name")
    assert [info.queue_name for info in found] == list(names.values_list("queue_name", flat=True).distinct())
    assert [(info.queue_name, info.backend_alias, info.size) for info in QueueInfo.all(backend_alias="other")] == [
        ("only-other", "other", 1)
    ]
    claim()
    assert QueueInfo.all() == []


# ---- selectors --------------------------------------------------------------------------------------

NAMES = [
    "email", "email-bulk", "Email", "EMAIL-x", "emai", "e", "%", "%a", "_", "_a", "a_b", "axb", "a%b", "*", "a*b",
    "🚀", "🚀 launch", "🚁", "é", "e\u0301", "ß", "SS", "a b", " lead", "it's", 'say "x"',
    "back\\slash", "-", "q" * 64, "0",
]  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("*", NAMES),
        ("email", ["email"]),
        ("email*", ["email", "email-bulk"]),
        ("Email*", ["Email"]),
        ("EMAIL*", ["EMAIL-x"]),
        ("e*", ["email", "email-bulk", "emai", "e", "e\u0301"]),
        ("%", ["%"]),
        ("%*", ["%", "%a"]),
        ("_", ["_"]),
        ("_*", ["_", "_a"]),
        ("a_*", ["a_b"]),
        ("a_b", ["a_b"]),
        ("a%*", ["a%b"]),
        ("**", ["*"]),
        ("a**", ["a*b"]),
        ("🚀", ["🚀"]),
        ("🚀*", ["🚀", "🚀 launch"]),
        ("é*", ["é"]),
        ("ß*", ["ß"]),
        ("s*", ["say \"x\""]),
        (" *", [" lead"]),
        ("it's*", ["it's"]),
        ('say "*', ['say "x"']),
        ("back\\*", ["back\\slash"]),
        ("q" * 63 + "*", ["q" * 64]),
        ("nothing", []),
        ("nothing*", []),
        ("", []),
    ],
)  # fmt: skip
def test_which_queues_a_selector_finds(selector: str, expected: list[str]) -> None:
    fill(*NAMES)
    assert claimed(selector) == expected
    for name in NAMES[::2]:
        QueueInfo(name).pause()
    assert claimed(selector) == [name for name in expected if name in NAMES[1::2]]
    assert claimed(selector, limit=1) == [name for name in expected if name in NAMES[1::2]][:1]
    Pause.objects.all().delete()
    QueueInfo("unrelated").pause()
    assert claimed(selector) == expected


def test_no_selector_is_every_queue() -> None:
    ids = fill("a", "b")
    assert [str(job.pk) for job in jobs.claim_ready_jobs(limit=5, queues=[])] == ids


def test_within_a_queue_priority_then_first_in_first_out() -> None:
    order = [(priority, fill("q", priority=priority)[0]) for priority in (0, 5, -100, 100, 0, 5, 100, -100)]
    expected = [job_id for _, job_id in sorted(order, key=lambda each: -each[0])]
    for selector in ("q", "q*", "*"):
        found = claim(queues=[selector])
        assert [str(job.claim.job_id) for job in found] == expected
        execution.release(backend_config(), found)
    one_by_one = [str(claim(1)[0].claim.job_id) for _ in expected]
    assert one_by_one == expected


def test_the_order_of_selectors_wins_over_priority() -> None:
    fill("default", priority=100)
    fill("email", priority=-100)
    fill("email-bulk", priority=50)
    assert claimed("email", "default") == ["email", "default"]
    assert claimed("email*", "default") == ["email-bulk", "email", "default"]
    assert claimed("email", "email*", "default") == ["email", "email-bulk", "default"]
    assert claimed("default", "*") == ["default", "email-bulk", "email"]
    assert claimed("*") == ["default", "email-bulk", "email"]
    assert claimed("email", "default", limit=1) == ["email"]


@pytest.mark.parametrize(
    "selectors",
    [["a", "a"], ["a*", "a"], ["a", "a*"], ["a*", "a*"], ["a*", "ab*"], ["ab*", "a*", "ab"], ["*", "a"],
     ["a", "*", "b"], ["*", "*"], ["b", "a*", "b", "*", "a"]],
    ids=str,
)  # fmt: skip
def test_selectors_that_overlap_find_each_job_once(selectors: list[str]) -> None:
    fill("a", "ab", "b", "a")
    names = ["a", "ab", "b", "a"]
    expected = [n for text in dict.fromkeys(selectors) for n in sorted(range(4)) if fits(names[n], text)]
    assert claimed(*selectors) == [names[n] for n in dict.fromkeys(expected)]
    assert states() == {"ready": 4}


def test_random_selectors_against_a_model() -> None:
    chance = random.Random(7)
    names = ["a", "ab", "a_", "a%", "A", "b", "*", "é"]
    stored: list[tuple[int, int, str, str]] = []
    for n in range(60):
        name, priority = chance.choice(names), chance.randint(-1, 1)
        stored.append((-priority, n, name, fill(name, priority=priority)[0]))
    stored.sort()
    for _ in range(120):
        paused = set(chance.sample(names, chance.choice([0, 0, 1, 3])))
        Pause.objects.all().delete()
        Pause.objects.bulk_create(Pause(queue_name=name) for name in paused)
        selectors = [
            chance.choice([*names, "a*", "*", "é*", "A*", "a_*", "nothing"]) for _ in range(chance.randint(1, 4))
        ]
        limit = chance.choice([1, 3, 10, 100])
        expected = list(dict.fromkeys(job_id for text in selectors for _, _, name, job_id in stored
                                      if fits(name, text) and name not in paused))[:limit]  # fmt: skip
        found = claim(limit, queues=selectors)
        assert [str(job.claim.job_id) for job in found] == expected, (selectors, paused, limit)
        execution.release(backend_config(), found)


def fits(name: str, text: str) -> bool:
    return name.startswith(text[:-1]) if text.endswith("*") else name == text


def test_a_claim_takes_its_alias_alone(two_aliases: None) -> None:
    fill("q", "r")
    fill("q", alias="other")
    QueueInfo("q").pause()
    assert claimed("*", alias="other") == ["q"]
    assert claimed("*") == ["r"]
    assert claimed("q") == []


# ---- a million beside -------------------------------------------------------------------------------

LONG = os.environ.get("DJ_QUEUE_TEST_LONG") == "1"
MANY = 1_000_000 if LONG else 200_000


@pytest.mark.timeout(300)
@pytest.mark.needs("executed plans")
@pytest.mark.parametrize("pause", [False, True], ids=["nothing paused", "the full queue paused"])
def test_a_full_queue_does_not_slow_another(pause: bool) -> None:
    """Whatever the selectors, a claim reads as much as it takes, and not what another queue holds."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority)"
            " SELECT gen_random_uuid(), 'default', 'full', n %% 5 FROM generate_series(1, %s) n",
            [MANY],
        )
    fill(*["small"] * 20, priority=-50)
    if pause:
        QueueInfo("full").pause()
    read: dict[str, int] = {}
    try:
        dialect_for("default").prepare_session(connection)
        for selectors in (
            ["small"],
            ["small*"],
            ["small", "full*"],
            ["s*", "t*"],
            *([["*"], ["nothing", "*"]] * pause),
        ):
            ran: list[Any] = []

            def note(execute: Any, sql: str, params: Any, many: bool, context: Any, ran: list[Any] = ran) -> Any:
                # Not Django's own list of queries: it does not show every one as it was sent.
                ran.append((sql, params))
                return execute(sql, params, many, context)

            with connection.execute_wrapper(note), transaction.atomic():
                found = claim(10, queues=selectors)
                assert [job.claim.queue_name for job in found] == ["small"] * 10
                transaction.set_rollback(True)
            ((sql, params),) = [each for each in ran if "RECURSIVE" in each[0]]
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
                (plan,) = cursor.fetchone()
                transaction.set_rollback(True)
            plan = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
            read[str(selectors)] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    finally:
        ReadyExecution.objects.filter(queue_name="full")._raw_delete("default")
        connection.close()  # a session like any other
    print(f"{MANY:,} rows beside: blocks read {read}")
    assert max(read.values()) < 700, read
