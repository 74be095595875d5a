"""Whether anything is left to do for the workers of a configuration."""

from __future__ import annotations

from collections.abc import Iterator

from dj_queue.config import BackendConfig
from dj_queue.dialects import Selector, dialect_for
from dj_queue.models import ClaimedExecution, Pause, ReadyExecution, ScheduledExecution


def is_drained(config: BackendConfig) -> bool:
    """Whether no job is claimed or due, and none is ready that these workers select, in a queue that is not paused."""
    using = config.database_alias
    if ClaimedExecution.objects.using(using).filter(job__backend_alias=config.alias).exists():
        return False
    due = ScheduledExecution.objects.using(using).filter(
        backend_alias=config.alias, scheduled_at__lte=dialect_for(using).clock()
    )
    if config.dispatchers and due.exists():
        return False
    selectors = [Selector.parse(text) for worker in config.workers for text in worker.queues]
    return not any(selector.matches(name) for name in _waiting(config) for selector in selectors)


def _waiting(config: BackendConfig) -> Iterator[str]:
    """The queues that have ready jobs and are not paused: one index probe for each, however many jobs they hold."""
    using = config.database_alias
    paused = set(Pause.objects.using(using).filter(backend_alias=config.alias).values_list("queue_name", flat=True))
    rows = ReadyExecution.objects.using(using).filter(backend_alias=config.alias).order_by("queue_name")
    names = rows.values_list("queue_name", flat=True)
    name = names.first()
    while name is not None:
        if name not in paused:
            yield name
        name = names.filter(queue_name__gt=name).first()
