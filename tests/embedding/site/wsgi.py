import json
import os
from pathlib import Path

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

_given = json.loads(os.environ.get("DJ_QUEUE_TEST_SITE", "{}"))
if "missing_until" in _given:
    # A migration that is there once a file is. Here, as what knows of migrations needs the apps.
    from dj_queue.operations import schema

    _unapplied = schema.unapplied_migrations
    schema.unapplied_migrations = lambda database: (
        _unapplied(database) if Path(_given["missing_until"]).exists() else ["0002_more"]
    )
