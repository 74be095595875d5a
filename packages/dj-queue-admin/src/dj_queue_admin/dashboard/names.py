"""Queue names in addresses: any text at all."""

import re

from django.urls import register_converter

# What servers, proxies and browsers would read as something else, or what our own addresses end with.
_AWKWARD = re.compile(r"^~|^/|/$|//|(^|/)\.\.?(/|$)|(^|/)action$|[\x00-\x1f\x7f\\]")


class QueueName:
    """A name as it is where that can work; as hexadecimal, after a tilde, where it cannot."""

    regex = r"[^\n]+"

    def to_python(self, value: str) -> str:
        if value.startswith("~"):
            try:
                return bytes.fromhex(value[1:]).decode()
            except ValueError:
                return value
        return value

    def to_url(self, value: str) -> str:
        return f"~{value.encode().hex()}" if _AWKWARD.search(value) else value


def register() -> None:
    """Let addresses use it, as `<dj_queue_name:name>`."""
    register_converter(QueueName, "dj_queue_name")
