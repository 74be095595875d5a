"""Attempts: a task knows which one it is, a result remembers all, and a task may try again by itself."""

from project import runtime, wait_for, wait_until_finished

from dj_queue.api import retry_failed_job
from dj_queue.models import Job
from tasks import call, sometimes

with runtime(dispatchers={"polling_interval": 0.1}):
    result = sometimes.enqueue(succeeds_at=2)
    wait_until_finished(result)
    print(f"{result.status} after {result.attempts} attempt: {result.errors[0].exception_class_path}")

    retry_failed_job(result.id)
    wait_for(lambda: result.refresh() or result.is_finished)
    print(f"{result.status}: {result.return_value}")
    print(f"{len(result.worker_ids)} attempts, {len(result.errors)} error")
    print(f"the last one began after the first: {result.last_attempted_at > result.started_at}")

    # Three tries with growing pauses. The last one fails for an operator to see.
    result = call.enqueue("555-0100")
    wait_for(lambda: Job.objects.failed().exists())
    for tries in ("first", "second", "third"):
        wait_until_finished(result)
        print(f"{tries} try: {result.status}")
        if tries != "third":
            result = call.get_result(result.return_value)
