"""Enqueue many jobs with one call: all or none, in one round trip on PostgreSQL."""

from project import runtime, wait_until_finished
from tasks import add

backend = add.get_backend()
results = backend.enqueue_all([(add, [n, n], {}) for n in range(100)])

with runtime():
    wait_until_finished(*results)

print(f"{len(results)} jobs, sum of their results: {sum(result.return_value for result in results)}")
