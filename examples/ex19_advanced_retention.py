"""How long jobs are kept: by options, which the scheduler applies, and by hand with `dj_queue_prune`."""

from project import runtime, wait_for, wait_until_finished

from django.core.management import call_command
from django.tasks.exceptions import TaskResultDoesNotExist

from dj_queue.models import Job
from tasks import add, charge, note

results = [add.enqueue(1, 2), note.enqueue("kept for a day"), charge.enqueue(1, -5)]
with runtime():
    wait_until_finished(*results)

# By hand: what is older than a number of seconds, of one task or all. Failed jobs are kept unless a time is given.
call_command("dj_queue_prune", "--older-than=0", "--failed-older-than=0", "--dry-run")
call_command("dj_queue_prune", "--older-than=0", "--task-path=tasks.add")
print("left:", *Job.objects.order_by("task_path").values_list("task_path", flat=True))

# By options: the scheduler deletes in short transactions, all the time.
options = {"clear_finished_jobs_after": 0, "clear_failed_jobs_after": 0, "scheduler": {"polling_interval": 0.2}}
with runtime(**options):
    wait_for(lambda: not Job.objects.exists())
print(f"after the scheduler: {Job.objects.count()} jobs")

# Never kept: a job that succeeds is deleted in the transaction that ends it. Failed ones stay.
with runtime(preserve_finished_jobs=False):
    result = add.enqueue(1, 2)
    wait_for(lambda: not Job.objects.exists())
try:
    result.refresh()
except TaskResultDoesNotExist:
    print("a job that is not preserved leaves no result")
