"""Random operations on the real database, step by step beside a model of the queue in plain Python.

The model says in which state every job must be, and in which order jobs start. Beside it, what must
hold of the tables whatever the model says is asked of the tables alone.

    DJ_QUEUE_TEST_LONG=1      500 examples instead of 100, or of 40 where each step takes several statements
    DJ_QUEUE_TEST_SEED=<n>    the same examples again: the seed is printed, with -rP or on failure
"""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar
from uuid import UUID

import hypothesis
import pytest
from django.db import connection
from django.db.models import F
from django.tasks import task_backends
from django.utils import timezone
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dj_queue.api import QueueInfo
from dj_queue.config import backend_config
from dj_queue.dialects import Outcome, Selector
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Pause,
    Process,
    ReadyExecution,
    ScheduledExecution,
    Semaphore,
)
from dj_queue.operations import execution, jobs, maintenance, processes, recovery, stored
from dj_queue.serialization import ErrorRecord
from tests import databases, features
from tests.project import tasks

LONG = os.environ.get("DJ_QUEUE_TEST_LONG") == "1"
SEED = int(os.environ.get("DJ_QUEUE_TEST_SEED") or random.randrange(2**32))
# A step there is a commit and a dozen round trips: an example takes a second or three.
ALL_HAPPENS = 100  # in so many examples, each operation at least once
EXAMPLES = 500 if LONG else ALL_HAPPENS if features.missing("several statements") else 40
STEPS = 40

LIMITS = {"one": 1, "none": 1, "two": 2}
KEYED = {
    "one_per_key": ("one", False),
    "one_or_none": ("none", True),
    "two_per_key": ("two", False),
    "two_or_none": ("two", True),
}
QUEUES = ["a", "ab", "b", "A"]
SELECTORS = ["*", "*", "a*", "b*", "a", "ab", "b", "A*"]

aliases = st.sampled_from(["default"] * 4 + ["other"])
queues = st.sampled_from(QUEUES)
priorities = st.integers(-2, 2)
batch_sizes = st.sampled_from([500, 1, 2])


@st.composite
def calls(draw: Callable[..., Any]) -> dict[str, Any]:
    """A job to enqueue: any queue and priority, with or without a key, now or in an hour."""
    name = draw(st.sampled_from(["add", "add", *KEYED]))
    return {
        "name": name,
        "key": draw(st.sampled_from("xy")) if name in KEYED else None,
        "queue": draw(queues),
        "priority": draw(priorities),
        "later": draw(st.sampled_from([False, False, False, True])),
    }


@dataclass
class Known:
    """A job, as the model knows it."""

    id: UUID
    alias: str
    queue: str
    priority: int
    key: str | None
    discards: bool
    state: str = ""
    place: int | None = None  # the id of its ready row
    turn: int | None = None  # the id of its blocked row
    due: int | None = None  # minutes ago
    number: int = 0  # of its scheduled row
    claim: execution.Job | None = None
    process: int | None = None
    attempts: int = 0
    failures: int = 0

    @property
    def limit(self) -> int:
        assert self.key
        return LIMITS[self.key.partition(":")[0]]


@dataclass
class Tables:
    """What the tables say."""

    states: dict[UUID, list[str]] = field(default_factory=dict)
    ids: dict[str, dict[UUID, int]] = field(default_factory=dict)
    keys: dict[UUID, str | None] = field(default_factory=dict)


type Operation = Callable[..., None]


def operation(
    weight: int = 1, when: Callable[[Any], Any] = lambda _: True, **strategies: st.SearchStrategy[Any]
) -> Callable[[Operation], Operation]:
    """Hypothesis picks among its rules evenly, and leaves some out: too few jobs would be worked on."""

    def register(function: Operation) -> Operation:
        OPERATIONS.append((function, weight, when, strategies))
        return function

    return register


OPERATIONS: list[tuple[Operation, int, Callable[[Any], Any], dict[str, st.SearchStrategy[Any]]]] = []


class Queue(RuleBasedStateMachine):
    examples = steps = 0
    seen: ClassVar[Counter[str]] = Counter()

    @initialize()
    def empty(self) -> None:
        with connection.cursor() as cursor:
            for model in (
                ReadyExecution, ScheduledExecution, ClaimedExecution, BlockedExecution, FailedExecution, Job,
                Pause, Process, Semaphore,
            ):  # fmt: skip
                cursor.execute(f"DELETE FROM {model._meta.db_table}")
        self.began = timezone.now()  # one for all that is due: as many days ago is the same time
        self.known: dict[UUID, Known] = {}
        self.paused: set[tuple[str, str]] = set()
        self.processes: dict[int, str] = {}
        self.lost: list[tuple[str, execution.Job]] = []
        self.last_place = self.last_turn = self.scheduled = 0
        self.expected_order: list[list[UUID]] = []
        type(self).examples += 1
        for alias in ("default", "default", "other"):
            self.start_process(alias)

    # ---- what is asked of the model ----

    def where(self, state: str, alias: str | None = None) -> list[Known]:
        return [job for job in self.known.values() if job.state == state and alias in (None, job.alias)]

    def some(self, data: st.DataObject, state: str, alias: str) -> list[Known]:
        """Draw some jobs of a state, in any order; at least one if there is one."""
        found = self.where(state, alias)
        if not found:
            return []
        return data.draw(st.lists(st.sampled_from(found), min_size=1, max_size=4, unique_by=lambda job: job.id))

    def busy(self, data: st.DataObject) -> tuple[int, str]:
        """Draw a process, rather one that holds jobs."""
        busy = {job.process for job in self.where("claimed")}
        found = sorted((pk not in busy, pk, alias) for pk, alias in self.processes.items())
        _, process, alias = found[0] if found[0][0] is False else data.draw(st.sampled_from(found))
        return process, alias

    def holders(self, key: str) -> int:
        return sum(job.key == key and job.state in ("ready", "claimed") for job in self.known.values())

    # ---- what the model expects ----

    def dispatch(self, batch: Iterable[Known]) -> None:
        """Jobs without a state find theirs. Those that become ready start in this order, keyed and unkeyed apart."""
        order: dict[bool, list[UUID]] = {True: [], False: []}
        waiting: list[UUID] = []
        for job in batch:
            job.place = job.turn = None
            if job.key is None or self.holders(job.key) < job.limit:
                job.state = "ready"
                order[job.key is None].append(job.id)
            elif job.discards:
                job.state = "finished"
            else:
                job.state = "blocked"
                waiting.append(job.id)
        self.expected_order += [*order.values(), waiting]

    def free(self, gone: Iterable[Known]) -> None:
        """Slots became free: the next blocked jobs take them."""
        for key in {job.key for job in gone if job.key}:
            waiting = sorted(
                (job for job in self.known.values() if job.key == key and job.state == "blocked"),
                key=lambda job: (-job.priority, job.turn),
            )
            started = []
            while waiting and self.holders(key) < waiting[0].limit:
                job = waiting.pop(0)
                job.state, job.place, job.turn = "ready", None, None
                started.append(job.id)
            self.expected_order.append(started)

    def forget(self, gone: Iterable[Known]) -> None:
        for job in gone:
            del self.known[job.id]

    def lose(self, claims: Iterable[Known]) -> None:
        """Claims that failed because their process is gone."""
        claims = list(claims)
        for job in claims:
            assert job.claim is not None
            self.lost.append((job.alias, job.claim))
            job.state, job.claim, job.process = "failed", None, None
            job.attempts += 1
            job.failures += 1
        self.free(claims)

    def give_back(self, claims: Iterable[Known], *, cut: bool = False) -> None:
        """Claims that are ready again; with `cut`, they were started, and that attempt is recorded."""
        for job in claims:
            assert job.claim is not None
            self.lost.append((job.alias, job.claim))
            job.state, job.claim, job.process = "ready", None, None
            job.attempts += cut
            job.failures += cut

    def count(self, *what: str) -> None:
        type(self).seen.update(what)

    # ---- operations ----

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        possible = {function.__name__: each for each in OPERATIONS for function in each[:1] if each[2](self)}
        names = [name for name, (_, weight, *_) in possible.items() for _ in range(weight)]
        function, _, _, strategies = possible[data.draw(st.sampled_from(names), label="operation")]
        drawn = {name: data.draw(strategy, label=name) for name, strategy in strategies.items()}
        if "data" in function.__annotations__:
            drawn["data"] = data
        function(self, **drawn)

    @operation(weight=3, alias=aliases, batch=st.lists(calls(), min_size=1, max_size=6))
    def enqueue(self, alias: str, batch: list[dict[str, Any]]) -> None:
        soon = timezone.now() + timedelta(hours=1)
        wanted = []
        for call in batch:
            task = getattr(tasks, call["name"]).using(
                queue_name=call["queue"],
                priority=call["priority"],
                run_after=soon if call["later"] else None,
                backend=alias,
            )
            wanted.append((task, [call["key"]] if call["key"] else [1, 2], {}))
        results = task_backends[alias].enqueue_all(wanted)
        new = []
        for call, result in zip(batch, results, strict=True):
            kind, discards = KEYED.get(call["name"], (None, False))
            key = f"{kind}:{call['key']}" if kind else None
            job = Known(UUID(result.id), alias, call["queue"], call["priority"], key, discards)
            self.known[job.id] = job
            if call["later"]:
                self.scheduled += 1
                job.state, job.number = "scheduled", self.scheduled
            else:
                new.append(job)
        self.dispatch(new)
        for result in results:
            discarded = self.known[UUID(result.id)].state == "finished"
            assert result.status == ("SUCCESSFUL" if discarded else "READY")

    @operation(when=lambda self: len(self.processes) < 3, alias=aliases)
    def start_process(self, alias: str) -> None:
        process = processes.register(
            backend_config(alias), kind=Process.Kind.WORKER, name="worker-1", pid=1, hostname="h", metadata={}
        )
        self.processes[process] = alias

    @operation(
        weight=5,
        when=lambda self: self.where("ready"),
        alias=aliases,
        selectors=st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=3),
        limit=st.integers(1, 6),
    )
    def claim(self, alias: str, selectors: list[str], limit: int, data: st.DataObject) -> None:
        mine = [pk for pk, its_alias in self.processes.items() if its_alias == alias]
        process = data.draw(st.sampled_from([*mine, None]))
        expected: list[Known] = []
        for text in selectors:
            selector = Selector.parse(text)
            matching = [
                job
                for job in self.where("ready", alias)
                if (job.queue.startswith(selector.name) if selector.prefix else job.queue == selector.name)
                and (alias, job.queue) not in self.paused
                and job not in expected
            ]
            expected += sorted(matching, key=lambda job: (-job.priority, job.place))
        expected = expected[:limit]
        claimed = execution.claim(
            backend_config(alias), [Selector.parse(text) for text in selectors], limit, process_id=process
        )
        assert [job.claim.job_id for job in claimed] == [job.id for job in expected]
        ids = [job.claim.id for job in claimed]
        assert ids == sorted(ids)
        for job, claim in zip(expected, claimed, strict=True):
            job.state, job.claim, job.process = "claimed", claim, process
        self.count(*["claimed"] * len(claimed))

    @operation(
        weight=3,
        when=lambda self: self.where("claimed"),
        alias=aliases,
        worked=st.lists(st.booleans(), min_size=4, max_size=4),
    )
    def finish(self, alias: str, worked: list[bool], data: st.DataObject) -> None:
        done = self.some(data, "claimed", alias)
        if not done:
            return
        batch = []
        for job, well in zip(done, worked, strict=False):
            assert job.claim is not None
            batch.append(outcome(job.claim, well))
            job.attempts += 1
            job.failures += not well
            job.state = "finished" if well else "failed"
        recorded = execution.finish(backend_config(alias), batch, worker="worker-1")
        assert len(recorded) == len(batch)
        self.lost += [(alias, job) for job in batch]
        for job in done:
            job.claim = job.process = None
        self.free(done)
        self.count("finished", *["failed"] * (not all(worked[: len(done)])))

    @operation(when=lambda self: self.lost, well=st.booleans())
    def finish_late(self, well: bool, data: st.DataObject) -> None:
        """Whose claim is gone changes nothing: not by finishing, not by giving back, not beside a live one."""
        alias, job = data.draw(st.sampled_from(self.lost))
        config = backend_config(alias)
        assert execution.finish(config, [outcome(job, well)], worker="worker-2") == []
        assert execution.release(config, [job]) == 0
        self.count("late")

    @operation(when=lambda self: self.where("claimed"), alias=aliases)
    def release(self, alias: str, data: st.DataObject) -> None:
        back = self.some(data, "claimed", alias)
        assert execution.release(backend_config(alias), [job.claim for job in back if job.claim]) == len(back)
        self.give_back(back)
        self.count("released")

    @operation(
        when=lambda self: self.processes,
        share=st.sampled_from([None, 0.0, 0.3, 0.6, 1.0]),
        give_back=st.sampled_from([False, False, True]),
    )
    def crash(self, share: float | None, give_back: bool, data: st.DataObject) -> None:
        process, alias = self.busy(data)
        held = sorted(
            (job for job in self.where("claimed", alias) if job.process == process), key=lambda job: job.claim.claim.id
        )
        started = None if share is None else round(share * len(held))
        up_to = None
        if started is not None:
            up_to = held[started - 1].claim.claim.id if started else 0
        recovered = recovery.process_ended(backend_config(alias), process, started_up_to=up_to, give_back=give_back)
        begun = held[:started]
        lost = [] if give_back else begun
        assert set(recovered.failed) == {str(job.id) for job in lost}
        assert recovered.released == len(held) - len(lost)
        self.give_back(job for job in held if job not in begun)
        if give_back:
            self.give_back(begun, cut=True)
        self.lose(lost)
        del self.processes[process]
        self.count("crashed", *["crashed with jobs"] * bool(held))

    @operation(when=lambda self: self.processes)
    def prune(self, data: st.DataObject) -> None:
        """The clock jumps past the heartbeat of a process."""
        process, alias = self.busy(data)
        Process.objects.filter(pk=process).update(last_heartbeat_at=F("last_heartbeat_at") - timedelta(hours=1))
        assert recovery.prune(backend_config(alias)) == 1
        self.lose(job for job in self.where("claimed", alias) if job.process == process)
        del self.processes[process]
        self.count("pruned")

    @operation(when=lambda self: any(job.process is None for job in self.where("claimed")), alias=aliases)
    def settle_missing(self, alias: str) -> None:
        lost = [job for job in self.where("claimed", alias) if job.process is None]
        recovered = recovery.settle_missing(backend_config(alias))
        assert set(recovered.failed) == {str(job.id) for job in lost}
        self.lose(lost)
        self.count(*["missing"] * bool(lost))

    @operation(alias=aliases, queue=queues, paused=st.booleans())
    def pause_or_resume(self, alias: str, queue: str, paused: bool) -> None:
        info = QueueInfo(queue, backend_alias=alias)
        if paused:
            info.pause()
            self.paused.add((alias, queue))
        else:
            info.resume()
            self.paused.discard((alias, queue))
        assert info.paused is paused
        self.count("paused" if paused else "resumed")

    @operation(
        when=lambda self: self.where("scheduled"),
        alias=aliases,
        limit=st.integers(1, 4),
        ages=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    )
    def promote(self, alias: str, limit: int, ages: list[int], data: st.DataObject) -> None:
        """The clock jumps past the due times of some scheduled jobs."""
        for job, age in zip(self.some(data, "scheduled", alias), ages, strict=False):
            job.due = age
            ScheduledExecution.objects.filter(job_id=job.id).update(scheduled_at=self.began - timedelta(days=age))
        due = [job for job in self.where("scheduled", alias) if job.due is not None]
        due.sort(key=lambda job: (-(job.due or 0), -job.priority, job.number))
        assert jobs.promote(backend_config(alias), limit=limit) == len(due[:limit])
        self.dispatch(due[:limit])
        self.count(*["promoted"] * bool(due))

    @operation(when=lambda self: self.where("failed"), alias=aliases, every=st.booleans(), batch=batch_sizes)
    def retry(self, alias: str, every: bool, batch: int, data: st.DataObject) -> None:
        some = self.some(data, "failed", alias)
        wanted = self.where("failed", alias) if every else some
        order = dict(FailedExecution.objects.values_list("job_id", "pk"))
        wanted.sort(key=lambda job: order[job.id])
        if every or len(wanted) != 1:
            given = None if every else [job.id for job in some]
            assert stored.retry_failed_jobs(job_ids=given, batch_size=batch, backend_alias=alias) == len(wanted)
        else:
            assert stored.retry_failed_job(wanted[0].id, backend_alias=alias).pk == wanted[0].id
        for job in wanted:
            job.state = ""
        for start in range(0, len(wanted), batch):
            self.dispatch(wanted[start : start + batch])
        self.count(*["retried"] * bool(wanted))

    @operation(
        when=lambda self: any(job.state not in ("finished", "claimed") for job in self.known.values()),
        alias=aliases,
        every=st.sampled_from([False, False, True]),
        batch=batch_sizes,
    )
    def discard(self, alias: str, every: bool, batch: int, data: st.DataObject) -> None:
        states = {job.state for job in self.known.values()} - {"claimed", "finished"}
        state = data.draw(st.sampled_from(sorted(states)), label="state")
        gone = self.where(state, alias) if every else self.some(data, state, alias)
        discard = getattr(jobs, f"discard_{state}_jobs")
        given = None if every else [job.id for job in gone]
        assert discard(job_ids=given, batch_size=batch, backend_alias=alias) == len(gone)
        self.forget(gone)
        if state == "ready":
            self.free(gone)
        self.count(*[f"discarded {state}"] * bool(gone))

    @operation(when=lambda self: self.where("ready"), alias=aliases, batch=batch_sizes)
    def clear(self, alias: str, batch: int, data: st.DataObject) -> None:
        queue = data.draw(st.sampled_from(sorted({job.queue for job in self.where("ready")})), label="queue")
        gone = [job for job in self.where("ready", alias) if job.queue == queue]
        assert QueueInfo(queue, backend_alias=alias).clear(batch_size=batch) == len(gone)
        self.forget(gone)
        self.free(gone)
        self.count(*["cleared"] * bool(gone))

    @operation(when=lambda self: self.known)
    def enqueue_again(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.known.values())))
        stored_job = jobs.enqueue_job_again(job.id, backend_alias=job.alias)
        copy = Known(stored_job.pk, job.alias, job.queue, job.priority, job.key, job.discards)
        assert copy.id not in self.known
        self.known[copy.id] = copy
        if stored_job.scheduled_at is not None:
            self.scheduled += 1
            copy.state, copy.number = "scheduled", self.scheduled
        else:
            self.dispatch([copy])
        self.count("enqueued again")

    @operation(
        alias=aliases,
        wrong=st.sampled_from(["nothing", "values", "blocked"]),
        value=st.integers(-5, 5),
        key=st.sampled_from("xy"),
    )
    def maintain(self, alias: str, wrong: str, value: int, key: str) -> None:
        """Upkeep changes nothing where nothing is wrong, and heals what is."""
        if wrong == "values":
            self.leak(alias, value)
        elif wrong == "blocked" and not self.holders(f"two:{key}"):
            self.leak_then_block(alias, key)
        else:
            assert sum(maintenance.maintain(backend_config(alias))) == 0
            self.count("maintained")

    def leak(self, alias: str, value: int) -> None:
        """A semaphore that counts wrong is right after upkeep, and one that expired is gone if nobody needs it."""
        Semaphore.objects.update(value=value, expires_at=timezone.now() - timedelta(seconds=1))
        BlockedExecution.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        assert sum(maintenance.maintain(backend_config(alias))) == 0
        needed = {job.key for job in self.known.values() if job.key and job.state in ("ready", "claimed", "blocked")}
        assert set(Semaphore.objects.values_list("key", flat=True)) == needed
        assert not BlockedExecution.objects.filter(expires_at__lte=timezone.now()).exists()
        self.count("leaked")

    def leak_then_block(self, alias: str, key: str) -> None:
        """A job that a leak blocked starts with upkeep."""
        Semaphore.objects.filter(key=f"two:{key}").delete()
        Semaphore.objects.create(key=f"two:{key}", value=0, limit=2, expires_at=timezone.now() + timedelta(hours=1))
        task = tasks.two_per_key.using(backend=alias, queue_name="a")
        job = Known(UUID(task.enqueue(key).id), alias, "a", 0, f"two:{key}", False)
        assert Job.objects.get(pk=job.id).status == "blocked"
        assert sum(maintenance.maintain(backend_config(alias))) == 1
        self.known[job.id] = job
        self.dispatch([job])
        self.count("healed")

    # ---- what holds after each ----

    @invariant()
    def holds(self) -> None:
        type(self).steps += 1
        found = look()
        self.tables_are_consistent(found)
        self.tables_are_as_expected(found)

    def tables_are_consistent(self, found: Tables) -> None:
        """Of the tables alone: one state a job, semaphores that add up, nobody waiting for a free slot."""
        for job, states in found.states.items():
            assert len(states) == 1, f"{job} is in the states {states}"
        held: Counter[str] = Counter()
        blocked: Counter[str] = Counter()
        for job, (state,) in found.states.items():
            key = found.keys[job]
            if key and state in ("ready", "claimed"):
                held[key] += 1
            elif key and state == "blocked":
                blocked[key] += 1
        semaphores = {row.key: row for row in Semaphore.objects.all()}
        for key in held.keys() | blocked.keys():
            limit = LIMITS[key.partition(":")[0]]
            assert held[key] <= limit, f"{held[key]} jobs hold {key}, and its limit is {limit}"
            assert key in semaphores, f"{key} is held, and has no semaphore"
            if blocked[key]:
                assert held[key] == limit, f"jobs are blocked by {key}, and only {held[key]} hold it"
        for key, row in semaphores.items():
            assert row.value == row.limit - held[key], f"{row}, and {held[key]} hold it"

    def tables_are_as_expected(self, found: Tables) -> None:
        expected = {job.id: [job.state] for job in self.known.values()}
        assert found.states == expected
        for job in self.known.values():
            assert found.keys[job.id] == job.key
        # A job's place in a queue is its ready row's id: new ones come after all that were, old ones stay.
        for name, attribute, last in (("ready", "place", "last_place"), ("blocked", "turn", "last_turn")):
            before = getattr(self, last)
            for job_id, row in found.ids[name].items():
                job = self.known[job_id]
                if getattr(job, attribute) is None:
                    assert row > before
                    setattr(job, attribute, row)
                assert getattr(job, attribute) == row
                setattr(self, last, max(row, getattr(self, last)))
        for order in self.expected_order:
            for name in ("ready", "blocked"):
                rows = [found.ids[name][job] for job in order if job in found.ids[name]]
                assert rows == sorted(rows)
        self.expected_order = []

    def teardown(self) -> None:
        rows = Job.objects.select_related("failed_execution")
        for row in rows:
            job = self.known[row.pk]
            assert len(row.worker_ids or []) == job.attempts
            assert len(row.errors or []) + hasattr(row, "failed_execution") == job.failures
            assert len(task_backends[job.alias].get_result(str(row.pk)).errors) == job.failures


def outcome(job: execution.Job, well: bool) -> execution.Job:
    error = None if well else ErrorRecord("builtins.ValueError", "it failed", "trace")
    job.outcome = Outcome(job.claim.id, job.claim.job_id, job.claim.claimed_at, "1" if well else None, error)
    return job


def look() -> Tables:
    found = Tables()
    for pk, key, finished_at in Job.objects.values_list("pk", "concurrency_key", "finished_at"):
        found.states[pk] = ["finished"] if finished_at else []
        found.keys[pk] = key
    for name, model in (
        ("ready", ReadyExecution),
        ("scheduled", ScheduledExecution),
        ("claimed", ClaimedExecution),
        ("blocked", BlockedExecution),
        ("failed", FailedExecution),
    ):
        found.ids[name] = dict(model.objects.order_by("pk").values_list("job_id", "pk"))
        for job_id in found.ids[name]:
            assert job_id in found.states, f"a {name} row of no job"
            found.states[job_id].append(name)
    return found


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(1800 if LONG else 300)
def test_random_operations(two_aliases: None, request: pytest.FixtureRequest) -> None:
    Queue.examples = Queue.steps = 0
    Queue.seen = Counter()
    logging.disable(logging.CRITICAL)  # a record for each of tens of thousands of events
    request.addfinalizer(partial(logging.disable, logging.NOTSET))
    print(f"{EXAMPLES} examples of up to {STEPS} steps, DJ_QUEUE_TEST_SEED={SEED}")
    run_state_machine_as_test(
        hypothesis.seed(SEED)(Queue),
        settings=hypothesis.settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"[{databases.VENDOR}] {Queue.examples} examples, {Queue.steps} steps: {dict(sorted(Queue.seen.items()))}")
    assert Queue.examples >= EXAMPLES
    if EXAMPLES < ALL_HAPPENS:
        return
    for happened in ("claimed", "finished", "failed", "late", "released", "crashed with jobs", "pruned", "missing",
                     "promoted", "retried", "cleared", "enqueued again", "leaked", "healed",
                     "discarded ready", "discarded blocked", "discarded failed", "discarded scheduled"):  # fmt: skip
        assert Queue.seen[happened], f"no example {happened}: the test shows nothing of it"
