"""The two supervisors, under the names that they are promised by."""

# ruff: noqa: E402
from dj_queue.runtime import host

# Before anything is imported that not every system has.
host.require()

from dj_queue.runtime.supervisor.fork import ForkSupervisor
from dj_queue.runtime.supervisor.threads import AsyncSupervisor

__all__ = ["AsyncSupervisor", "ForkSupervisor"]
