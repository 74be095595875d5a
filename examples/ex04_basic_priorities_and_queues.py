"""Named queues come in the worker's order, and within a queue higher priorities come first."""

from project import runtime, wait_until_finished
from tasks import note

results = [
    note.using(queue_name="reports", priority=100).enqueue("reports, priority 100"),
    note.using(queue_name="email", priority=-5).enqueue("email, priority -5"),
    note.using(queue_name="email", priority=10).enqueue("email, priority 10"),
]

# One thread, so that the order shows; "email" before everything else.
with runtime(workers={"queues": ["email", "*"], "threads": 1}):
    wait_until_finished(*results)

for result in sorted(results, key=lambda result: result.started_at):
    print(result.return_value)
