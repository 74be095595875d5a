"""Options from a YAML file: a flat one for the alias that is run, or `backends:` with one mapping for each."""

from project import runtime, wait_for

import os
import tempfile
from pathlib import Path

from django.core.management import CommandError, call_command

from dj_queue.models import Process

FLAT = """
workers:
  - queues: [email, "reports*"]
    threads: 2
  - threads: 1
dispatchers:
  polling_interval: 0.5
"""
BACKENDS = """
backends:
  default:
    mode: async
    workers: {threads: 5}
"""


def runners():
    """What the processes say of themselves, once all are there."""
    rows = wait_for(lambda: list(Process.objects.exclude(kind="Supervisor").order_by("name")))
    return [f"{row.name} {row.metadata.get('queues', '')} {row.metadata.get('threads', '')}".strip() for row in rows]


with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "dj_queue.yml"

    # An option that the file has replaces that of the settings as a whole: these are all workers there are.
    file.write_text(FLAT)
    with runtime("--config", str(file), workers={"threads": 50}):
        wait_for(lambda: Process.objects.count() == 5)
        print(*runners(), sep="\n")

    file.write_text(BACKENDS)
    os.environ["DJ_QUEUE_CONFIG"] = str(file)
    with runtime("--only-work"):
        wait_for(lambda: Process.objects.count() == 2)
        print(*runners(), "in mode", Process.objects.get(kind="Supervisor").metadata["mode"])
    del os.environ["DJ_QUEUE_CONFIG"]

    # Mistakes are told before anything starts, with their place.
    file.write_text("workers:\n  threds: 4\n")
    try:
        call_command("dj_queue", "--config", str(file))
    except CommandError as error:
        print(str(error).splitlines()[1].strip().removeprefix(folder))
