"""Recurring tasks that are made, changed and removed while the program runs: one for each customer, say."""

from project import runtime, wait_for

from django.core.exceptions import ValidationError

from dj_queue.api import schedule_recurring_task, unschedule_recurring_task
from dj_queue.models import Job, RecurringTask

for customer in (41, 42):
    schedule_recurring_task(
        key=f"report_{customer}",
        task_path="tasks.note",
        schedule="* * * * * *",  # six fields: the last one is seconds
        args=[f"the report of customer {customer}"],
        queue_name="reports",
        description="made by ex13",
    )

# The same key again changes the task. This one now waits for a morning in Tokyo.
schedule_recurring_task(key="report_41", task_path="tasks.note", schedule="0 6 * * *", timezone="Asia/Tokyo")
for task in RecurringTask.objects.order_by("key"):
    print(f"{task.key}: {task.schedule}, in {task.timezone or 'the TIME_ZONE of the project'}")

try:
    schedule_recurring_task(key="report_43", task_path="tasks.note", schedule="every morning")
except ValidationError:
    print(f"refused, and still {RecurringTask.objects.count()} tasks")

reports = Job.objects.finished().filter(task_path="tasks.note", queue_name="reports")
with runtime(scheduler={"dynamic_tasks_enabled": True, "polling_interval": 0.2}):
    wait_for(lambda: reports.count() >= 2)
    print("unscheduled:", unschedule_recurring_task("report_42"), "and then", unschedule_recurring_task("report_42"))

print("ran:", *{job.return_value for job in reports})
print("left:", *RecurringTask.objects.values_list("key", flat=True))
