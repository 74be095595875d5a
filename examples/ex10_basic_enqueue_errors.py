"""What cannot be stored is refused where it is given, and nothing is written."""

from project import runtime  # noqa: F401  the project around the example; no runtime is needed here

import datetime

from django.tasks.exceptions import InvalidTask

from dj_queue.exceptions import EnqueueError
from dj_queue.models import Job
from tasks import add, charge, note, sync_account

for wrong in (datetime.date(2026, 1, 31), {1, 2}, float("nan")):
    try:
        note.enqueue(wrong)
    except EnqueueError as error:  # its message says where in the arguments, and what to pass instead
        print(f"a {type(wrong).__name__}: {type(error).__name__}")

# A concurrency key is made of the arguments, so these must fit the task.
try:
    sync_account.enqueue(42)
except EnqueueError:
    print("no action: refused")

# Of many, all are stored or none.
try:
    charge.get_backend().enqueue_all([(charge, [1, 10], {}), (charge, [2, object()], {})])
except EnqueueError:
    print(f"one of two: refused, and {Job.objects.count()} stored")

# What is wrong with the task itself is Django's own InvalidTask.
try:
    add.using(priority=101)
except InvalidTask as error:
    print(f"InvalidTask: {error}")
