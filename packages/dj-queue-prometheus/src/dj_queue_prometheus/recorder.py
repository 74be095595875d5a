"""Where a worker counts what its jobs did.

Each worker writes two files in a folder that its supervisor made, in the format in which prometheus-client
shares metrics between processes; the process that serves them adds the files up. A file is named after the worker's
place and not after its process: the process that replaces another counts on where that one ended, so no
counter ever falls, and there are never more files than workers. The application's own use of
prometheus-client, in one process or several, is not touched.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict, mmap_key

OTHER = "other"
LABELS = ["backend", "queue", "task"]

FINISHED = ("dj_queue_jobs_finished", "Jobs that succeeded.")
FAILED = ("dj_queue_jobs_failed", "Jobs that failed: their task raised, or returned what cannot be stored.")
DURATION = ("dj_queue_job_duration_seconds", "How long jobs ran, failed ones included.")
WAIT = (
    "dj_queue_job_wait_seconds",
    "From when a job was due, enqueued or scheduled, to the start of its first attempt.",
)

# From a millisecond to an hour: a no-op and a report are both background work.
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600, float("inf"))


class Recorder:
    """Subscribes to `job.executed` and `job.failed` of one backend alias."""

    EVENTS = ("job.executed", "job.failed")

    def __init__(self, folder: Path, name: str, *, backend_alias: str, most_series: int) -> None:
        self._backend_alias = backend_alias
        self._most_series = most_series
        self._counters = _open(folder / f"counter_{name}.db")
        self._histograms = _open(folder / f"histogram_{name}.db")
        self._series: dict[tuple[str, str], _Series] = {}
        # In async mode several workers tell one recorder.
        self._lock = threading.Lock()
        self._closed = False

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        # Recovery tells of failures too, without these: nobody knows how long such a job ran.
        if fields.get("backend_alias") != self._backend_alias:
            return
        with self._lock:
            if self._closed:
                return
            series = self._find(fields["queue_name"], fields["task_path"])
            series.finished.add(1) if event == "job.executed" else series.failed.add(1)
            series.duration.observe(fields["seconds"])
            if fields["waited_seconds"] is not None:
                series.wait.observe(fields["waited_seconds"])

    def close(self) -> None:
        """Count no more, also for a worker's thread that has not ended yet."""
        with self._lock:
            self._closed = True
            for file in (self._counters, self._histograms):
                file.close()  # type: ignore[no-untyped-call]

    def _find(self, queue: str, task: str) -> _Series:
        found = self._series.get((queue, task))
        if found is None:
            if len(self._series) >= self._most_series:
                queue = task = OTHER
            labels = [self._backend_alias, queue, task]
            found = self._series.get((queue, task)) or _Series(self._counters, self._histograms, labels)
            self._series[queue, task] = found
        return found


class _Series:
    def __init__(self, counters: MmapedDict, histograms: MmapedDict, labels: list[str]) -> None:
        self.finished = _counter(counters, FINISHED, labels)
        self.failed = _counter(counters, FAILED, labels)
        self.duration = _Histogram(histograms, DURATION, labels)
        self.wait = _Histogram(histograms, WAIT, labels)


class _Value:
    """A number in a shared file, which may be there already."""

    def __init__(self, file: MmapedDict, key: str) -> None:
        self._file = file
        self._key = key
        self._value: float = file.read_value(key)[0]  # type: ignore[no-untyped-call]

    def add(self, amount: float) -> None:
        self._value += amount
        self._file.write_value(self._key, self._value, 0.0)  # type: ignore[no-untyped-call]


class _Histogram:
    def __init__(self, file: MmapedDict, family: tuple[str, str], labels: list[str]) -> None:
        name, text = family
        self._sum = _Value(file, mmap_key(name, f"{name}_sum", LABELS, labels, text))
        bounds = ((bound, [*labels, _label(bound)]) for bound in BUCKETS)
        # Each on its own; the collector adds up what lies below.
        self._buckets = [
            (bound, _Value(file, mmap_key(name, f"{name}_bucket", [*LABELS, "le"], values, text)))
            for bound, values in bounds
        ]

    def observe(self, seconds: float) -> None:
        self._sum.add(seconds)
        next(value for bound, value in self._buckets if seconds <= bound).add(1)


def _label(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(float(bound))


def _open(path: Path) -> MmapedDict:
    return MmapedDict(str(path))  # type: ignore[no-untyped-call]


def _counter(file: MmapedDict, family: tuple[str, str], labels: list[str]) -> _Value:
    name, text = family
    return _Value(file, mmap_key(name, f"{name}_total", LABELS, labels, text))
