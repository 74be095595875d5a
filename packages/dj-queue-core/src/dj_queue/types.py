"""Types with long names. Aliases are evaluated lazily: Django's own classes are not generic at run time."""

from typing import Any

from django.tasks import Task, TaskResult

type AnyTask = Task[..., Any]
type AnyTaskResult = TaskResult[..., Any]
