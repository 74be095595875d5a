"""The views behind `dj_queue.urls`."""
