import json
import os

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.embedding.site.urls"
MIDDLEWARE: list[str] = []
_given = json.loads(os.environ.get("DJ_QUEUE_TEST_SITE", "{}"))
DEBUG = _given.get("DEBUG", False)
DATABASES["default"]["CONN_MAX_AGE"] = _given.get("CONN_MAX_AGE", 0)
if "missing_until" in _given:
    # A migration that is there once a file is.
    from pathlib import Path

    from dj_queue.operations import schema

    _unapplied = schema.unapplied_migrations
    schema.unapplied_migrations = lambda database: (
        _unapplied(database) if Path(_given["missing_until"]).exists() else ["0002_more"]
    )
