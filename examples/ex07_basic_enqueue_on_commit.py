"""Enqueue only if the current transaction commits."""

from project import runtime, wait_for

from django.db import transaction

from dj_queue.api import enqueue_on_commit
from dj_queue.models import Job
from tasks import note

with transaction.atomic():
    enqueue_on_commit(note, "order 1 was placed")
    print(f"inside the transaction: {Job.objects.count()} jobs")
print(f"after the commit: {Job.objects.count()} job")

try:
    with transaction.atomic():
        enqueue_on_commit(note, "order 2 was placed")
        raise RuntimeError("the payment failed")
except RuntimeError:
    print(f"after a rollback: still {Job.objects.count()} job")

with runtime():
    wait_for(lambda: Job.objects.finished().count() == 1)
print(Job.objects.get().return_value)
