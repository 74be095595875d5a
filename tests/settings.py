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
if not _given:
    # The admin, for the tests alone: a process that they start has no pages, and starts sooner.
    ROOT_URLCONF = "tests.urls"
    STATIC_URL = "static/"
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # for speed
    INSTALLED_APPS += [
        "dj_queue_admin",
        "django.contrib.admin",
        "django.contrib.messages",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
    ]
    MIDDLEWARE = [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.csp.ContentSecurityPolicyMiddleware",
    ]
    SECURE_CSP = {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
    }
    TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ],
            },
        },
    ]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"dj_queue": {"handlers": ["console"], "level": "INFO"}},
}
