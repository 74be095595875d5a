"""Concurrency keys as pages show them: without what is hidden in the arguments that they were made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from django.db.models import OuterRef, QuerySet, Subquery

from dj_queue.config import BackendConfig
from dj_queue.key_masks import masked, masked_by
from dj_queue.models import BlockedExecution, ClaimedExecution, Job, ReadyExecution, Semaphore
from dj_queue_admin import tasks
from dj_queue_admin.records import shown
from dj_queue_admin.redaction import redaction
from dj_queue_admin.secrets import HIDDEN

_RUNNING: Final = 2_000  # claims that are looked through for jobs of a key


def visible(config: BackendConfig, keys: Sequence[str]) -> dict[str, str]:
    """How each key may be shown: by the arguments of a job that has it, and by what its task says of keys."""
    found = {key: masked(key) for key in keys}
    for job in _jobs(config, keys):
        key = job.concurrency_key
        call = shown.parse(job.payload_text, shown.LONGEST_IN_LIST)
        task = tasks.look(job.task_path).task
        if isinstance(call, shown.Unreadable):
            found[key] = HIDDEN
        elif task is not None and (told := masked_by(key, task)) != key:
            found[key] = told
        else:
            found[key] = redaction().secrets(job.task_path, call).hide(key)
    return found


def _jobs(config: BackendConfig, keys: Iterable[str]) -> list[Any]:
    """One job of each key, if any waits, is ready or runs."""
    using = config.database_alias
    wanted = list(keys)

    def one(rows: QuerySet[Any]) -> Subquery:
        return Subquery(rows.filter(concurrency_key=OuterRef("key")).values("job_id")[:1])

    # In the order of the index that has the key; by their ids, all of the table might be read for a key without any.
    blocked = one(BlockedExecution.objects.using(using).order_by("-priority", "id"))
    ready = one(ReadyExecution.objects.using(using).order_by())
    rows = Semaphore.objects.using(using).filter(key__in=wanted).annotate(blocked=blocked, ready=ready)
    ids = {job_id for pair in rows.values_list("blocked", "ready") for job_id in pair if job_id is not None}
    claims = ClaimedExecution.objects.using(using)
    oldest = claims.order_by("-pk").values_list("pk", flat=True)[_RUNNING : _RUNNING + 1].first() or 0
    running = claims.filter(pk__gt=oldest, job__concurrency_key__in=wanted).order_by("pk")
    ids.update(running.values_list("job_id", flat=True)[: len(wanted)])
    jobs = Job.objects.using(using).filter(pk__in=ids).only("pk", "task_path", "concurrency_key")
    return list(shown.as_text(jobs, shown.LONGEST_IN_LIST, payload_text="payload"))
