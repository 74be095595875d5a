"""Tests of code that enqueues, and of the tasks themselves: five ways, in a TestCase, without a runtime."""

from project import runtime  # noqa: F401  in your project, `manage.py test` makes the database

import io
import unittest
from datetime import timedelta

from django.db import transaction
from django.tasks import default_task_backend
from django.test import TestCase, override_settings
from django.utils import timezone

from dj_queue.api import enqueue_on_commit
from dj_queue.models import Job
from dj_queue.operations.jobs import claim_ready_jobs, execute_claimed_job
from dj_queue.testing import assert_enqueued, assert_not_enqueued, run_jobs
from tasks import add, charge, note

DUMMY = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
IMMEDIATE = {"default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}}


def place_order(number):
    """The code under test."""
    with transaction.atomic():
        enqueue_on_commit(note, f"order {number}")


class Orders(TestCase):
    def test_1_a_task_is_a_function(self):
        assert add.call(3, 7) == 10

    @override_settings(TASKS=DUMMY)
    def test_2_what_was_enqueued(self):
        with self.captureOnCommitCallbacks(execute=True):
            place_order(1)
        (result,) = default_task_backend.results
        assert (result.task, result.args) == (note, ["order 1"])

    @override_settings(TASKS=IMMEDIATE)
    def test_3_run_at_once(self):
        assert add.enqueue(3, 7).return_value == 10

    def test_4_stored_claimed_and_run_as_in_production(self):
        with self.captureOnCommitCallbacks(execute=True):
            place_order(2)
        wrong = charge.enqueue(2, -5)
        for job in claim_ready_jobs(limit=10):
            execute_claimed_job(job.id)
        assert Job.objects.finished().get().return_value == "order 2"
        wrong.refresh()
        assert wrong.errors[0].exception_class is ValueError

    def test_5_run_to_the_end_with_a_clock_of_its_own(self):
        place_order(3)
        tomorrow = timezone.now() + timedelta(days=1)
        add.using(run_after=tomorrow).enqueue(3, 7)
        assert [result.return_value for result in run_jobs()] == ["order 3"]
        assert_enqueued(add, args=[3, 7], run_after=tomorrow)
        assert [result.return_value for result in run_jobs(until=timedelta(days=2))] == [10]
        assert_not_enqueued(add)


class Reported(unittest.TextTestResult):
    def addSuccess(self, test):  # noqa: N802  unittest's name
        print(f"passed: {test.id().partition('test_')[2]}")


suite = unittest.defaultTestLoader.loadTestsFromTestCase(Orders)
done = unittest.TextTestRunner(stream=io.StringIO(), resultclass=Reported).run(suite)
for _, problem in done.failures + done.errors:
    print(problem)
print(f"jobs left in the database: {Job.objects.count()}")
