"""The two supervisors, under the names that they are promised by."""

from dj_queue.runtime.forked import ForkSupervisor
from dj_queue.runtime.threaded import AsyncSupervisor

__all__ = ["AsyncSupervisor", "ForkSupervisor"]
