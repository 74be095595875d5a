"""Jobs that failed: look at them, retry some, run a copy, discard the rest."""

from project import runtime, wait_for, wait_until_finished

from collections import Counter

from dj_queue.api import discard_failed_jobs, enqueue_job_again, retry_failed_job, retry_failed_jobs
from dj_queue.models import FailedExecution, Job
from tasks import charge, sometimes

results = [
    charge.enqueue(1, -5),
    charge.enqueue(2, -7),
    sometimes.enqueue(succeeds_at=2),
    sometimes.enqueue(succeeds_at=2),
]

with runtime():
    wait_until_finished(*results)
    failed = FailedExecution.objects.order_by("exception_class", "message")
    for (kind, message), count in Counter(failed.values_list("exception_class", "message")).items():
        print(f"{count} x {kind}: {message}")

    # Those that failed for a reason that is over, in one call.
    retried = FailedExecution.retry_all(FailedExecution.objects.filter(exception_class="builtins.ConnectionError"))
    wait_for(lambda: Job.objects.finished().count() == 2)
    print(f"retried {retried}; failed now: {failed.count()}")

    # One by its id, or all: what is wrong with them is still wrong.
    retry_failed_job(results[0].id)
    wait_for(lambda: failed.count() == 2)
    print(f"retried all: {retry_failed_jobs()}")
    wait_for(lambda: failed.count() == 2)

    # A fresh copy of a stored job, whatever became of it.
    copy = enqueue_job_again(results[2].id)
    wait_for(lambda: failed.count() == 3)
    print(f"the copy has an id of its own: {str(copy.id) != results[2].id}")

print(f"discarded {discard_failed_jobs()}; failed now: {failed.count()}")
