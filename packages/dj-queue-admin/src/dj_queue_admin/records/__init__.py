"""The stored rows in the admin: changelists, the page of a row, and what operators do to them.

selection  which jobs a filter means, at a bounded cost
listing    a list of rows in Django's changelist, counted to a cap
record     what the admins of all models share; one module for each model stands on it
job_page   everything about one job
bulk       one verb on everything that a filter matches
verbs      one verb on many jobs
shown      stored data as text that cannot break a page
cells      small pieces of HTML
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import Model

from dj_queue.models import FailedExecution, Job, Pause, Process, RecurringTask, Semaphore
from dj_queue_admin.records.failure import FailedExecutionAdmin
from dj_queue_admin.records.job import JobAdmin
from dj_queue_admin.records.pause import PauseAdmin
from dj_queue_admin.records.process import ProcessAdmin
from dj_queue_admin.records.recurring_task import RecurringTaskAdmin
from dj_queue_admin.records.semaphore import SemaphoreAdmin

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

    type AnyModelAdmin = ModelAdmin[Any]

# What `dj_queue_admin.admin.register` puts on a site, beside the dashboard.
MODEL_ADMINS: dict[type[Model], type[AnyModelAdmin]] = {
    Job: JobAdmin,
    FailedExecution: FailedExecutionAdmin,
    Process: ProcessAdmin,
    RecurringTask: RecurringTaskAdmin,
    Pause: PauseAdmin,
    Semaphore: SemaphoreAdmin,
}
