"""Ask a queue how it is: as JSON, for Prometheus, and for a load balancer."""

import project

from django.test import Client
from dj_queue.api import QueueInfo
from tasks import add, note

client = Client(headers={"host": "127.0.0.1"})


def ask(path):
    return client.get(f"/dj_queue/{path}")


def queue(name):
    return next(queue for queue in ask("stats.json").json()["backends"][0]["queues"] if queue["name"] == name)


note.using(queue_name="email").enqueue("hello")
QueueInfo("reports").pause()
print(f"email: {queue('email')['ready_count']} ready, {queue('email')['live_worker_count']} workers")
print(f"reports is paused: {queue('reports')['paused']}")
print("ready:", ask("health/ready").status_code, "live:", ask("health/live").status_code)

with project.runtime():
    project.wait_until_finished(add.enqueue(3, 7))
    project.wait_for(lambda: queue("email")["finished_count"])
    print(f"email: {queue('email')['ready_count']} ready, {queue('email')['live_worker_count']} workers")
    print("ready:", ask("health/ready?max_latency=60").status_code)
    for line in ask("metrics").text.splitlines():
        if line.startswith('dj_queue_queue_jobs{backend="default",queue="email",state="finished"}'):
            print(line)
