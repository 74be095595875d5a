"""Django settings of the test project, in tests and in the processes that they start."""

import json
import os

from tests import databases

SECRET_KEY = "tests"
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "dj_queue",
    "tests.project",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# A process that a test starts works on that test's database.
_given = os.environ.get("DJ_QUEUE_TEST_DATABASE")
DATABASES = {"default": json.loads(_given) if _given else databases.settings()}
DATABASE_ROUTERS = ["dj_queue.routers.DjQueueRouter"]
TASKS = {
    "default": {
        "BACKEND": "dj_queue.backend.DjQueueBackend",
        "QUEUES": [],
        "OPTIONS": json.loads(os.environ.get("DJ_QUEUE_TEST_OPTIONS", "{}")),
    },
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"dj_queue": {"handlers": ["console"], "level": "INFO"}},
}
