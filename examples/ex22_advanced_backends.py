"""Several aliases in TASKS: queue systems of their own, and other backends beside them."""

import json
import os

os.environ["DJ_QUEUE_EXAMPLES_TASKS"] = json.dumps(  # project.py puts these beside `default`
    {
        "mail": {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": {"workers": {"threads": 8}}},
        "inline": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend", "QUEUES": []},
    }
)

from project import runtime, wait_until_finished

from django.core.management import CommandError, call_command
from django.tasks import task_backends
from django.tasks.exceptions import TaskResultDoesNotExist

from dj_queue.api import QueueInfo
from tasks import note

usual = note.enqueue("for the default alias")
letter = note.using(backend="mail").enqueue("a letter")
print(f"inline: {note.using(backend='inline').enqueue('at once').status}")
print("ready:", *(f"{alias} {QueueInfo('default', backend_alias=alias).size}" for alias in ("default", "mail")))

# Each alias is run by a command of its own.
with runtime("--backend", "mail"):
    wait_until_finished(letter)
usual.refresh()
print(f"mail: {letter.status}, default: {usual.status}")

# Nothing of one is seen by another.
try:
    task_backends["default"].get_result(letter.id)
except TaskResultDoesNotExist:
    print("default does not know the letter")

# And what is not dj-queue's is left alone.
try:
    call_command("dj_queue", "--backend", "inline")
except CommandError as error:
    print(str(error).partition(",")[0])
