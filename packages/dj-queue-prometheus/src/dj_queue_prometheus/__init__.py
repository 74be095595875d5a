"""Prometheus metrics of dj-queue.

collector   what every queue looks like now, read from the database when it is scraped
exposition  the same as a view: the `metrics` route of `dj_queue.urls`
runtime     durations, waits and outcomes of jobs, counted by the workers; off by default
recorder    where a worker counts
listener    the process that serves what the workers have counted
conf        the setting `DJ_QUEUE_PROMETHEUS`
"""

from dj_queue_prometheus.collector import DjQueueCollector, registry

__all__ = ["DjQueueCollector", "__version__", "registry"]

__version__ = "1.0.0a1"
