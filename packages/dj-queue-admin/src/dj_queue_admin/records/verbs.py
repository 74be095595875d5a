"""What is done to many jobs at once: batches through core's operations, each job at most once."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from dj_queue.config import BackendConfig
from dj_queue.operations import jobs

BATCH = 500


def retry(config: BackendConfig, job_ids: Sequence[UUID]) -> int:
    """Retry those that are failed; return how many were."""
    return jobs.retry_failed_jobs(job_ids=job_ids, batch_size=BATCH, backend_alias=config.alias)


def discard(config: BackendConfig, job_ids: Sequence[UUID]) -> int:
    """Delete those that fail, wait or are scheduled; return how many there were. What runs or is done stays."""
    return sum(
        step(job_ids=job_ids, batch_size=BATCH, backend_alias=config.alias)
        for step in (
            jobs.discard_failed_jobs,
            jobs.discard_scheduled_jobs,
            # Blocked before ready: a ready job that goes makes a blocked one ready.
            jobs.discard_blocked_jobs,
            jobs.discard_ready_jobs,
        )
    )
