"""`manage.py dj_queue --drain`: it works off what is there, and ends."""

from datetime import timedelta

import pytest
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.models import Job, Process
from tests.conftest import lines
from tests.project import chained, tasks
from tests.runtime.test_recovery import ONE_THREAD, enqueue, shorts
from tests.working import states

MODES = pytest.mark.parametrize("mode", ["fork", "async"])


@MODES
def test_ends_once_nothing_is_left_to_do(runtime, ran, mode):
    enqueue(*shorts(ran, "job", 30), (tasks.fail,), (chained.enqueue_another, "enqueued by a job"))
    for number in range(3):
        tasks.one_per_key.enqueue("key", number)
    soon = timezone.now() + timedelta(seconds=0.5)
    tasks.append_line.using(run_after=soon).enqueue(str(ran), "due meanwhile")
    running = runtime("--drain", options=ONE_THREAD | {"mode": mode}, rows=None)
    assert running.wait(60) == 0, running.output
    assert "nothing is left running" in running.output
    assert len(lines(ran)) in (30, 31)
    assert states()["finished"] >= 35
    assert states()["failed"] == 1
    assert not Process.objects.exists()


def test_leaves_what_is_paused_not_selected_or_not_due(runtime, ran):
    QueueInfo("paused").pause()
    enqueue(*shorts(ran, "job", 5))
    tasks.add.using(queue_name="paused").enqueue(1, 2)
    tasks.add.using(queue_name="others").enqueue(1, 2)
    tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
    running = runtime("--drain", options={"workers": {"queues": ["default", "paused"]}}, rows=None)
    assert running.wait(60) == 0, running.output
    assert states() == {"finished": 5, "ready": 2, "scheduled": 1}
    assert set(Job.objects.ready().values_list("queue_name", flat=True)) == {"paused", "others"}


def test_does_not_go_with_reload(runtime):
    running = runtime("--drain", "--reload", rows=None, options={})
    assert running.wait() == 1
    assert "--drain ends by itself, and --reload never does" in running.output
