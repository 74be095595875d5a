"""Look at a queue, pause it, resume it, clear it."""

from project import runtime, wait_until_finished

from dj_queue.api import QueueInfo
from tasks import note

orders = QueueInfo("orders")
orders.pause()
result = note.using(queue_name="orders").enqueue("order 1")
elsewhere = note.enqueue("not an order")
print(f"paused: {orders.paused}, size: {orders.size}")

with runtime():
    wait_until_finished(elsewhere)
    result.refresh()
    print(f"while paused: {result.status}")
    orders.resume()
    wait_until_finished(result)
    print(f"after resuming: {result.status}")

note.using(queue_name="orders").enqueue("order 2")
print("queues:", [queue.queue_name for queue in QueueInfo.all()])
print(f"cleared: {orders.clear()}, size: {orders.size}")
