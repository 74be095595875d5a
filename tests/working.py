"""Do a worker's work in the test's own thread, and look at what it left."""

import re
from collections import Counter
from collections.abc import Iterable

from dj_queue.config import backend_config
from dj_queue.dialects import Selector
from dj_queue.operations import execution

WORKER = "worker-1"


def claim(
    limit: int = 100,
    *,
    queues: Iterable[str] = ("*",),
    alias: str = "default",
    process_id: int | None = None,
) -> list[execution.Job]:
    selectors = [Selector.parse(text) for text in queues]
    return execution.claim(backend_config(alias), selectors, limit, process_id=process_id)


def run(jobs: Iterable[execution.Job], *, alias: str = "default", worker: str = WORKER) -> list[execution.Job]:
    """Run the tasks of claimed jobs, and record nothing."""
    jobs = list(jobs)
    for job in jobs:
        execution.run(job, backend_config(alias), worker=worker)
    return jobs


def work(
    limit: int = 100,
    *,
    queues: Iterable[str] = ("*",),
    alias: str = "default",
    worker: str = WORKER,
) -> list[execution.Job]:
    """Claim, run, record and announce up to `limit` jobs; return those that were recorded."""
    jobs = run(claim(limit, queues=queues, alias=alias), alias=alias, worker=worker)
    if not jobs:
        return []
    recorded = execution.finish(backend_config(alias), jobs, worker=worker)
    execution.announce(recorded)
    return recorded


def states() -> Counter[str]:
    """How many jobs each state has. Fails unless every job is in exactly one."""
    from dj_queue.models import STATES, Job

    found: Counter[str] = Counter()
    executions = [f"{state}_execution" for state in STATES[:-1]]
    for job in Job.objects.select_related(*executions):
        rows = [state for state in STATES[:-1] if hasattr(job, f"{state}_execution")]
        if job.finished_at is not None:
            rows.append("finished")
        assert len(rows) == 1, f"{job} is in the states {rows}"
        assert job.status == rows[0]
        found[rows[0]] += 1
    return found


def name_case(value: object) -> str:
    """The name of a parametrized case, the same in every process that collects it."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value) if isinstance(value, str) else repr(value))[:60]
