"""How a worker of uvicorn's class says that it ends: by the lifespan protocol alone.

Once it has shut down, uvicorn sends itself the signal that it was asked with, and the process is gone before
gunicorn could call `worker_exit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


def is_uvicorn(worker: Any) -> bool:
    roots = {base.__module__.partition(".")[0] for base in type(worker).__mro__}
    return not roots.isdisjoint({"uvicorn", "uvicorn_worker"})


class BeforeShutdown:
    """An ASGI application that calls `stop` before the server hears that `app` has shut down."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[Any]], stop: Callable[[], None]) -> None:
        self._app = app
        self._stop = stop

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        answered = False

        async def send_ours(message: Any) -> None:
            nonlocal answered
            answered = True
            if message["type"].startswith("lifespan.shutdown."):
                await asyncio.to_thread(self._stop)
            await send(message)

        try:
            await self._app(scope, receive, send_ours)
        except Exception:
            if answered:
                raise
            # It knows no lifespan, as Django's does not: the events are for us alone.
            await send({"type": "lifespan.startup.complete"})
            while (await receive())["type"] != "lifespan.shutdown":
                pass
            await send_ours({"type": "lifespan.shutdown.complete"})
