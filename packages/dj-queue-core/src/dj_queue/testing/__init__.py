"""Test code that enqueues: run what is enqueued, and assert what is.

    from dj_queue.testing import assert_enqueued, run_jobs

    class OrderTests(TestCase):
        def test_a_new_order_is_confirmed(self):
            place_order("ada@example.org")
            assert_enqueued(send_confirmation, args=["ada@example.org"])
            run_jobs()
            self.assertEqual(len(mail.outbox), 1)

Jobs are claimed, run and recorded as a worker does it, on the connection and in the transaction of the test.
With pytest, the fixture `jobs` offers the same.
"""

from dj_queue.testing.assertions import assert_enqueued, assert_not_enqueued, enqueued_jobs
from dj_queue.testing.running import arun_jobs, run_jobs

__all__ = ["arun_jobs", "assert_enqueued", "assert_not_enqueued", "enqueued_jobs", "run_jobs"]
