"""Nothing that a task, a receiver, a hook or a subscriber does to its thread or process reaches the next job."""

import contextvars
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from django.db import connection, transaction
from django.utils import timezone, translation

from dj_queue.models import ClaimedExecution, Job, Process, ReadyExecution
from dj_queue.operations.jobs import claim_ready_jobs, execute_claimed_job
from tests.conftest import alive, lines, pid_of, wait_settled, wait_until
from tests.project import hostile, tasks
from tests.project.models import Run
from tests.runtime.test_recovery import EAGER, ONE_THREAD, enqueue, shorts
from tests.working import states

MODES = pytest.mark.parametrize("mode", ["fork", "async"])
TWO_THREADS = {"workers": {"threads": 2, "polling_interval": 0.05}}


def value_of(job_id):
    return Job.objects.get(pk=job_id).return_value


def run_one(*call):
    (job_id,) = enqueue(call)
    wait_until(lambda: Job.objects.filter(pk=job_id).first().status in ("finished", "failed"))
    return value_of(job_id)


@MODES
def test_exceptions_that_come_late_cost_a_thread_and_no_job(runtime, mode):
    running = runtime(options=TWO_THREADS | {"mode": mode}, rows=2)
    worker = pid_of("worker-1")
    for _ in range(3):
        told = running.output.count("LateError")
        thread = run_one(hostile.be_ended_late)
        # The other thread has its turn too: until the first one has met its exception.
        wait_until(lambda told=told: run_one(hostile.return_thread) and running.output.count("LateError") > told)
        assert thread
    enqueue(*[(hostile.return_thread,)] * 20)
    wait_settled()
    assert set(states()) == {"finished"}
    assert pid_of("worker-1") == worker
    assert running.stop() == 0


@MODES
def test_what_listens_and_exits_costs_nobody_anything(runtime, project, ran, mode):
    """Receivers of signals, subscribers of events and hooks may raise what is no `Exception`."""
    code = """
import asyncio
import itertools
from django.tasks.signals import task_finished, task_started
from dj_queue import events, hooks
kinds = itertools.cycle([SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def leave(*args, **kwargs):
    raise next(kinds)
async def leave_async(*args, **kwargs):
    raise asyncio.CancelledError
for signal in (task_started, task_finished):
    signal.connect(leave, weak=False)
events.subscribe(leave, "job.claimed", "job.executed", "job.failed")
for event in hooks.EVENTS:
    hooks.register_hook(event, leave)
"""
    running = runtime(options=TWO_THREADS | {"mode": mode}, environment=project(code), rows=2)
    worker = pid_of("worker-1")
    for n in range(4):
        enqueue(*shorts(ran, f"job{n}", 10), (tasks.fail,))
        wait_settled()
    assert states() == {"finished": 40, "failed": 4}
    assert len(set(lines(ran))) == len(lines(ran)) == 40
    assert pid_of("worker-1") == worker
    assert "a receiver of task_finished raised" in running.output
    assert running.stop() == 0


@pytest.mark.parametrize("persistent", [False, True], ids=["closed after each job", "persistent connection"])
def test_a_transaction_that_was_left_open_ends_with_its_job(runtime, project, persistent):
    settings = 'DATABASES["default"]["CONN_MAX_AGE"] = None\n' if persistent else ""
    running = runtime(options=ONE_THREAD, environment=project(settings=settings), rows=2)
    for n, how in enumerate(hostile.LEFT_OPEN):
        if how == "statement" and not persistent:
            continue
        (left,) = enqueue((hostile.leave_open, how))
        enqueue(*[(tasks.leave_run, f"{how} {m}") for m in range(3)])
        wait_settled()
        assert Run.objects.filter(label__startswith=how).count() == 3, how
        failed = set(Job.objects.failed().values_list("pk", flat=True))
        assert {str(job_id) for job_id in failed} <= {left}, how
        Job.objects.all().delete()
        assert n < len(hostile.LEFT_OPEN)
    assert not Run.objects.filter(label="in a block that was left open").exists()
    assert "(tests.project.hostile.leave_open) left a transaction open on the database 'default'" in running.output
    assert running.stop() == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside a block"])
def test_a_job_executed_by_hand_leaves_the_callers_connection_as_it_was(caplog, inside):
    if connection.vendor == "sqlite" and connection.is_in_memory_db() and not inside:
        pytest.skip("the database lives in the connection")

    def execute():
        enqueue((hostile.leave_open, "nested blocks"))
        (job,) = claim_ready_jobs(limit=1)
        assert execute_claimed_job(job.id).status == "finished"

    if inside:
        with transaction.atomic():
            execute()
            assert len(connection.atomic_blocks) == 1
    else:
        execute()
    from django.db import connections

    assert not connections["default"].in_atomic_block
    assert states() == {"finished": 1}
    assert "left a transaction open on the database 'default'" in caplog.text


@MODES
def test_each_job_has_a_context_of_its_own(runtime, mode):
    running = runtime(options=ONE_THREAD | {"mode": mode}, rows=2)
    first = run_one(hostile.look_around)
    assert run_one(hostile.set_context, "acme") == first
    assert run_one(hostile.set_context_async, "acme") == first
    assert run_one(hostile.look_around) == first
    assert first[0] == "nobody"
    # What Django keeps in the context for the thread's sake is kept.
    assert run_one(hostile.cache_identity) == run_one(hostile.cache_identity)
    assert running.stop() == 0


@pytest.mark.django_db(transaction=True)
def test_a_job_executed_by_hand_leaves_the_callers_context_as_it_was():
    from django.tasks.signals import task_finished

    heard = []

    def receiver(task_result, **kwargs):
        heard.append(hostile.look())
        hostile.tenant.set("of the receiver")

    def execute():
        hostile.tenant.set("of the caller")
        with translation.override("de"), timezone.override("Europe/Berlin"):
            before = hostile.look()
            for task in (hostile.set_context, hostile.set_context_async):
                enqueue((task, "acme"))
                (job,) = claim_ready_jobs(limit=1)
                assert execute_claimed_job(job.id).return_value[0] == "nobody"
            assert hostile.look() == before

    task_finished.connect(receiver)
    try:
        contextvars.copy_context().run(execute)
    finally:
        task_finished.disconnect(receiver)
    assert [name for name, *_ in heard] == ["nobody"] * 2


@MODES
def test_a_child_that_a_task_forks_ends_where_the_task_does(runtime, ran, mode):
    kinds = {"returns": 0, "raises": 1, "exits": 7}
    calls = []
    for task in (hostile.fork, hostile.fork_async):
        for how in kinds:
            calls += [*shorts(ran, f"{task.name} {how}", 50), (task, how)]
    enqueue(*calls)
    running = runtime(options=TWO_THREADS | {"mode": mode}, rows=2)
    wait_settled()
    assert states() == {"finished": len(calls)}
    assert Counter(lines(ran)).most_common(1)[0][1] == 1
    ended = Job.objects.filter(task_path__contains="hostile.fork").values_list("payload", "return_value")
    assert sorted((payload["args"][0], value) for payload, value in ended) == sorted([*kinds.items()] * 2)
    assert running.stop() == 0


@MODES
def test_a_child_that_nobody_waits_for_does_not_stay_behind(runtime, ran, mode):
    running = runtime(options=TWO_THREADS | {"mode": mode}, rows=2)
    children = [run_one(task) for task in (hostile.fork_and_forget, hostile.fork_and_forget_async)]
    # It may end later than the job that has made it: then with one that follows in the same thread.
    wait_until(lambda: run_one(hostile.return_thread) and not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert running.stop() == 0


def test_a_child_that_a_receiver_or_hook_forks_ends_there(runtime, project, ran):
    code = """
import os
from django.tasks.signals import task_finished, task_started
from dj_queue import events, hooks
def fork(*args, **kwargs):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
for signal in (task_started, task_finished):
    signal.connect(fork, weak=False)
events.subscribe(fork, "job.executed")
hooks.on_worker_start(fork)
"""
    enqueue(*shorts(ran, "job", 20))
    running = runtime(options=TWO_THREADS, environment=project(code), rows=2)
    wait_settled()
    assert sorted(lines(ran)) == sorted({*lines(ran)})
    assert len(lines(ran)) == 20
    assert running.stop() == 0


def test_task_finished_does_not_wait_for_long_jobs(runtime, project, ran, release, tmp_path):
    told = tmp_path / "told"
    # One claim of all four: the thread goes from the short ones to the long one without a pause.
    code = f"""{EAGER}
from django.tasks.signals import task_finished
from tests.project import tasks
def tell(task_result, **kwargs):
    tasks.append_line.func({str(told)!r}, task_result.id)
task_finished.connect(tell, weak=False)
"""
    running = runtime(options=ONE_THREAD, environment=project(code), rows=2)
    short = enqueue(*shorts(ran, "short", 3), (tasks.wait_then_append, str(release), str(ran), "long"))[:3]
    wait_until(Path(f"{release}.started").exists)
    wait_until(lambda: told.exists() and sorted(lines(told)) == sorted(short))
    assert states() == {"finished": 3, "claimed": 1}
    release.touch()
    wait_until(lambda: len(lines(told)) == 4)
    assert running.stop() == 0


@MODES
def test_while_the_lease_is_over_claims_go_back_and_nothing_spins(runtime, project, ran, release, tmp_path, mode):
    over, steps = tmp_path / "over", tmp_path / "steps"
    code = f"""
import os
from pathlib import Path
from dj_queue.runtime import lease, worker
over, steps = Path({str(over)!r}), {str(steps)!r}
held = lease.Lease.valid.fget
lease.Lease.valid = property(lambda self: held(self) and not over.exists())
step = worker.Worker.step
def counted(self):
    with open(steps, "ab", buffering=0) as file:
        file.write(b".")
    return step(self)
worker.Worker.step = counted
worker.Worker._room = lambda self: 10 - self._pool.unfinished
"""
    running = runtime(options=ONE_THREAD | {"mode": mode}, environment=project(code), rows=2)
    enqueue((tasks.wait_then_append, str(release), str(ran), "first"), *shorts(ran, "later", 9))
    wait_until(Path(f"{release}.started").exists)
    over.touch()
    release.touch()
    wait_until(lambda: lines(ran) == ["first"] and states() == {"finished": 1, "ready": 9})
    assert not ClaimedExecution.objects.exists()
    before = steps.stat().st_size
    beats = set()
    wait_until(lambda: len(beats.add(int(__import__("time").monotonic() * 10)) or beats) > 10)
    assert steps.stat().st_size - before < 100
    over.unlink()
    wait_settled()
    assert states() == {"finished": 10}
    assert len(lines(ran)) == 10
    assert running.stop() == 0


def test_a_worker_that_was_stopped_past_its_lease_starts_everything_in_the_end(runtime, ran):
    """Between lease and threshold: nobody has pruned it, and it may not start what it holds."""
    options = ONE_THREAD | {"process_heartbeat_interval": 0.5, "process_alive_threshold": 10}
    # So short that the next one is taken before a heartbeat gets through.
    enqueue(*((tasks.append_line_slowly, str(ran), f"job{n}", 0.001) for n in range(3000)))
    running = runtime(options=options, rows=2)
    wait_until(lambda: len(lines(ran)) > 10)
    tree = [running.pid, *Process.objects.values_list("pid", flat=True)]
    for pid in set(tree):
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: Process.objects.filter(last_heartbeat_at__gt=_ago(9.2)).count() == 0, seconds=30)
    finally:
        for pid in set(tree):
            os.kill(pid, signal.SIGCONT)
    wait_settled(seconds=60)
    assert not ReadyExecution.objects.exists()
    assert alive(running.pid)
    assert Counter(lines(ran)).most_common(1)[0][1] == 1
    assert running.stop() == 0


def _ago(seconds):
    from dj_queue.dialects import dialect_for

    return dialect_for("default").clock(ago=seconds)


def test_a_limit_below_the_bare_process_replaces_no_idle_worker(runtime, ran):
    running = runtime(options={"workers": {"threads": 1, "recycle_above_mib": 1, "polling_interval": 0.05}}, rows=2)
    worker = pid_of("worker-1")
    enqueue(*shorts(ran, "job", 30))
    wait_settled()
    enqueue(*shorts(ran, "more", 30))
    wait_settled()
    assert pid_of("worker-1") == worker
    assert "recycle_above_mib is 1, and this process takes" in running.output
    assert "process.replaced" not in running.output
    assert running.stop() == 0
