"""The fixture `jobs` for pytest. Imported by every run of pytest where this is installed: it imports nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence


class Jobs:
    """`dj_queue.testing`, as one object."""

    def run(
        self,
        queues: Sequence[str] | str | None = None,
        until: datetime | timedelta | None = None,
        now: datetime | None = None,
        raise_errors: bool = True,
        *,
        backend_alias: str = "default",
    ) -> list[Any]:
        """`dj_queue.testing.run_jobs`"""
        from dj_queue.testing import run_jobs

        return run_jobs(queues, until, now, raise_errors, backend_alias=backend_alias)

    async def arun(
        self,
        queues: Sequence[str] | str | None = None,
        until: datetime | timedelta | None = None,
        now: datetime | None = None,
        raise_errors: bool = True,
        *,
        backend_alias: str = "default",
    ) -> list[Any]:
        """`dj_queue.testing.arun_jobs`"""
        from dj_queue.testing import arun_jobs

        return await arun_jobs(queues, until, now, raise_errors, backend_alias=backend_alias)

    def enqueued(self, queue_name: str | None = None, *, backend_alias: str = "default") -> list[Any]:
        """`dj_queue.testing.enqueued_jobs`"""
        from dj_queue.testing import enqueued_jobs

        return enqueued_jobs(queue_name, backend_alias=backend_alias)

    def assert_enqueued(self, task: Any, **wanted: Any) -> Any:
        """`dj_queue.testing.assert_enqueued`"""
        from dj_queue.testing import assert_enqueued

        return assert_enqueued(task, **wanted)

    def assert_not_enqueued(self, task: Any, **wanted: Any) -> None:
        """`dj_queue.testing.assert_not_enqueued`"""
        from dj_queue.testing import assert_not_enqueued

        assert_not_enqueued(task, **wanted)


@pytest.fixture
def jobs() -> Jobs:
    """Run what a test has enqueued, and assert what is: needs the database, as by `pytest.mark.django_db`."""
    return Jobs()
