"""Charts that agree with the exact numbers beside them, as far as stored jobs could only be sampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dj_queue.operations.history import History
from dj_queue.operations.observation import ObservedQueue
from dj_queue_admin.dashboard.figures import total


def agreeing(past: History, queues: Iterable[ObservedQueue]) -> History:
    """The history of these queues, with what is known exactly of them.

    What waits now is known. A chart that has less of it misses jobs that came before its time and have waited
    all along; one that has more has estimated too many. And no more finished, in any time, than are stored.
    """
    queues = list(queues)
    waiting, finished = total(queues, "ready", "blocked"), total(queues, "finished")
    steps = list(past.steps)
    missing = waiting.count - steps[-1].waiting
    if missing > 0 or not waiting.capped:
        steps = [replace(step, waiting=max(0, step.waiting + missing)) for step in steps]
    ended = sum(step.finished for step in steps)
    if ended > finished.count and not finished.capped:
        # Rounded so that the sum is no more than there are.
        steps = [replace(step, finished=step.finished * finished.count // ended) for step in steps]
    return replace(past, steps=tuple(steps))
