"""Queue names in addresses: any text that a queue can be named."""

import re

from django.urls import register_converter

from dj_queue.models import MAX_QUEUE_NAME
from dj_queue.serialization import is_storable

# What servers, proxies and browsers would read as something else, or what our own addresses end with.
_AWKWARD = re.compile(r"^~|^/|/$|//|(^|/)\.\.?(/|$)|(^|/)action$|[\x00-\x1f\x7f\\]")


class QueueName:
    """A name as it is where that can work; as hexadecimal, after a tilde, where it cannot."""

    regex = r"[^\n]+"

    def to_python(self, value: str) -> str:
        """Raises `ValueError`, which Django answers with 404, for what no queue can be named."""
        name = bytes.fromhex(value[1:]).decode() if value.startswith("~") else value
        if not is_storable(name) or not 0 < len(name) <= MAX_QUEUE_NAME:
            raise ValueError(f"no queue can be named {ascii(name)[:80]}")
        return name

    def to_url(self, value: str) -> str:
        return f"~{value.encode().hex()}" if _AWKWARD.search(value) else value


def register() -> None:
    """Let addresses use it, as `<dj_queue_name:name>`."""
    register_converter(QueueName, "dj_queue_name")
