"""A task that raises is kept, with its error, until it is retried or discarded."""

from project import runtime, wait_until_finished

from dj_queue.api import discard_failed_job, retry_failed_job
from dj_queue.exceptions import EnqueueError
from tasks import charge

try:
    charge.enqueue(1, {10, 20})
except EnqueueError as error:
    print(f"refused: {error}")

result = charge.enqueue(1, -5)
with runtime():
    wait_until_finished(result)
    print(f"{result.status}: {result.errors[0].exception_class_path}")
    print(result.errors[0].traceback.splitlines()[-1])

    retry_failed_job(result.id)
    result.refresh()
    wait_until_finished(result)
    print(f"after a retry: {result.attempts} attempts, {len(result.errors)} errors")

print(f"discarded: {discard_failed_job(result.id)}")
