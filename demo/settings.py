"""Settings of the demo project: what any project needs, on a SQLite file that the demo names."""

import os

SECRET_KEY = "demo"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "dj_queue"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["DJ_QUEUE_DEMO_DATABASE"],
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}
DATABASE_ROUTERS = ["dj_queue.routers.DjQueueRouter"]
TASKS = {
    "default": {
        "BACKEND": "dj_queue.backend.DjQueueBackend",
        "QUEUES": [],
        "OPTIONS": {"workers": {"threads": 4}, "dispatchers": {"polling_interval": 0.2}},
    }
}
# The demo prints the failed job itself.
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"django.tasks": {"level": "CRITICAL"}}}
