"""Whether this process is a fork of the one that asked before.

To be asked around each job: a system call, as `os.getpid()` is one, takes longer than all the rest of that.
"""

import os

# How many forks lie between this process and the one that imported this.
depth = 0


def _count() -> None:
    global depth
    depth += 1


os.register_at_fork(after_in_child=_count)
