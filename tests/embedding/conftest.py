from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.embedding.servers import SITE, Server


@pytest.fixture
def server(transactional_db: None) -> Iterator[Callable[..., Server]]:
    """Start servers: `server("uvicorn", "--workers", "2", options={...})`."""
    started: list[Server] = []

    def start(
        kind: str,
        *arguments: str,
        app: str = f"{SITE}.asgi:application",
        options: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        port: int | None = None,
        wait: bool = True,
    ) -> Server:
        running = Server(kind, *arguments, app=app, options=options or {}, environment=environment or {}, port=port)
        started.append(running)
        if wait:
            running.wait_serving()
        return running

    yield start
    for running in started:
        running.close()
