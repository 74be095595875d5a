"""Tasks that enqueue others, and that break a transaction."""

from django.db import IntegrityError, transaction
from django.tasks import task

from dj_queue.api import enqueue_on_commit
from tests.project.models import Run
from tests.project.tasks import leave_run


@task
def enqueue_another(label: str) -> None:
    leave_run.enqueue(label)


@task
def enqueue_on_its_commit(label: str) -> None:
    with transaction.atomic():
        enqueue_on_commit(leave_run, label)


@task
def enqueue_itself() -> None:
    enqueue_itself.enqueue()


@task
def break_transaction() -> None:
    """Let a statement fail, outside any block of its own."""
    run = Run.objects.create(label="once")
    try:
        Run.objects.create(pk=run.pk, label="twice")
    except IntegrityError as error:
        raise ValueError("it failed") from error
