"""Recurring tasks, from the settings and at run time."""

from project import runtime, wait_for

from dj_queue.api import schedule_recurring_task, unschedule_recurring_task
from dj_queue.models import Job, RecurringTask

options = {
    "scheduler": {"dynamic_tasks_enabled": True, "polling_interval": 0.2},
    "recurring": {
        # Six fields: the last one is seconds.
        "every_second": {"task_path": "tasks.note", "schedule": "* * * * * *", "args": ["from the settings"]},
    },
}

schedule_recurring_task(key="report_42", task_path="tasks.send_digest", schedule="* * * * * *", args=["secondly"])

with runtime(**options):
    wait_for(lambda: Job.objects.finished().filter(task_path="tasks.note").count() >= 2)
    wait_for(lambda: Job.objects.finished().filter(task_path="tasks.send_digest").count() >= 2)
    print("static and dynamic tasks:", ", ".join(RecurringTask.objects.order_by("key").values_list("key", flat=True)))
    print("unscheduled the dynamic one:", unschedule_recurring_task("report_42"))
    print("unscheduled the static one:", unschedule_recurring_task("every_second"))

ticks = list(Job.objects.filter(task_path="tasks.note").values_list("recurring_execution__run_at", flat=True))
print("each tick was enqueued once:", len(ticks) == len(set(ticks)))
