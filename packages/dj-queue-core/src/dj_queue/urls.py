"""`path("dj_queue/", include("dj_queue.urls"))`: what monitoring asks of a queue."""
