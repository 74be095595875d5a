"""A job is a row: it commits with your data, and is gone with your rollback."""

from project import runtime, wait_until_finished

from django.db import transaction

from dj_queue.exceptions import EnqueueError
from dj_queue.models import Job
from tasks import note

with transaction.atomic():
    note.enqueue("order 1 was placed")
    transaction.set_rollback(True)
print(f"after a rollback: {Job.objects.count()} jobs")

with transaction.atomic():
    kept = note.enqueue("order 2 was placed")
    try:
        with transaction.atomic():  # a savepoint
            note.enqueue("its discount was applied")
            raise RuntimeError("no such discount")
    except RuntimeError:
        pass
print(f"after a savepoint's rollback and a commit: {Job.objects.count()} job")

# A refused enqueue has written nothing, so the transaction around it goes on.
with transaction.atomic():
    try:
        note.enqueue(object())
    except EnqueueError:
        also = note.enqueue("order 3 was placed")

with runtime():
    wait_until_finished(kept, also)
print(f"{kept.return_value}; {also.return_value}")
