"""Read a result in another place than where it was enqueued: by its id."""

from project import runtime, wait_until_finished

from django.tasks.exceptions import TaskResultDoesNotExist

from tasks import add

result_id = add.enqueue(20, 22).id

with runtime():
    result = add.get_result(result_id)
    wait_until_finished(result)

print(f"{result.status} after {result.attempts} attempt by {result.worker_ids[0]}: {result.return_value}")
print(f"times are in order: {result.enqueued_at <= result.started_at <= result.finished_at}")

try:
    add.get_result("no such id")
except TaskResultDoesNotExist:
    print("unknown ids raise TaskResultDoesNotExist")
