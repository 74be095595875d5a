"""Runs in a system's environment: stores jobs through the public API, and prints how long that took.

python -m bench.project.fill '{"task": "noop", "count": 1000, "queues": ["a", "b"], "pause": []}'
"""

import json
import sys
import time

import django

_BATCH = 5000


def main(wanted):
    django.setup()
    from bench.project import tasks
    from dj_queue.api import QueueInfo

    task = getattr(tasks, wanted["task"])
    queues = wanted["queues"]
    variants = [task.using(queue_name=name) for name in queues]
    backend = task.get_backend()
    began = time.perf_counter()
    for start in range(0, wanted["count"], _BATCH):
        stop = min(start + _BATCH, wanted["count"])
        backend.enqueue_all([(variants[n % len(queues)], [n], {}) for n in range(start, stop)])
    seconds = time.perf_counter() - began
    for name in wanted["pause"]:
        QueueInfo(name).pause()
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
