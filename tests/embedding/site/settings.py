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
