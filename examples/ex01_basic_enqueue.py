"""Enqueue a task, let a worker run it, read the result."""

from project import runtime, wait_until_finished
from tasks import add

result = add.enqueue(3, 7)
print(f"enqueued {result.task.name}: {result.status}")

with runtime():
    wait_until_finished(result)

print(f"{result.status}: {result.return_value}")
