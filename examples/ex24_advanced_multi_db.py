"""A queue on a database of its own: where its tables are, and whose transaction a job joins.

The project has two databases here. On the second, `queue`, only dj-queue's migrations are applied:

    python manage.py migrate
    python manage.py migrate dj_queue --database queue
"""

import os

os.environ["DJ_QUEUE_EXAMPLES_QUEUE_DATABASE"] = "1"  # project.py adds the alias `queue`

from project import runtime, wait_until_finished

from django.core.management import call_command
from django.db import connections, transaction

from dj_queue.api import enqueue_on_commit
from dj_queue.models import Job
from tasks import note

call_command("migrate", "dj_queue", database="queue", verbosity=0)
tables = connections["queue"].introspection.table_names()
print(
    "on the queue's database, dj-queue's tables alone:", all(t.startswith(("dj_queue_", "django_mig")) for t in tables)
)

# On the queue's own alias, a job is a part of the transaction ...
with transaction.atomic(using="queue"):
    note.enqueue("rolled back")
    transaction.set_rollback(True, using="queue")
print(f"after a rollback on the queue's database: {Job.objects.count()} jobs")

# ... and on another it is not: it is stored at once, and a worker may see it before your rows are there,
with transaction.atomic():
    early = note.enqueue("stored at once")
    transaction.set_rollback(True)
print(f"after a rollback on the application's database: {Job.objects.count()} job")

# unless it waits for the commit.
with transaction.atomic():
    enqueue_on_commit(note, "never stored")
    transaction.set_rollback(True)
with transaction.atomic():
    enqueue_on_commit(note, "stored after the commit")
print(f"with enqueue_on_commit, after a rollback and a commit: {Job.objects.count()} jobs")

# The runtime reads and writes the queue's database alone.
with runtime():
    wait_until_finished(early)
print(f"{early.status}: {early.return_value}")
