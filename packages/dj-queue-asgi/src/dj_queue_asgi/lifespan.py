"""The ASGI lifespan protocol, with a dj-queue supervisor behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from dj_queue.exceptions import DjQueueError

if TYPE_CHECKING:  # models: they may be imported only once Django is set up
    from dj_queue.runtime.embedded import Embedded

logger = logging.getLogger("dj_queue")

type Receive = Callable[[], Awaitable[Any]]
type Send = Callable[[Any], Awaitable[None]]


class DjQueueLifespan:
    """An ASGI application that answers the server's lifespan events itself, and passes all else to `app`.

    A supervisor of `backend_alias` runs from startup to shutdown. Wrap once more for each further alias.
    """

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[Any]], *, backend_alias: str = "default") -> None:
        self.app = app
        self.backend_alias = backend_alias
        self._heard = False  # of the protocol, or said that the server does not speak it

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._heard = True
            await self._live(receive, send)
            return
        if not self._heard:
            self._heard = True
            logger.warning(
                "dj_queue: this server sends requests without the lifespan protocol, so no supervisor runs in it."
                " Turn the protocol on, use a server that knows it, or run: manage.py dj_queue"
            )
        await self.app(scope, receive, send)

    @property
    def backend_aliases(self) -> list[str]:
        """This alias and those of the lifespans within, which hear no events."""
        inner = self.app.backend_aliases if isinstance(self.app, DjQueueLifespan) else []
        return [self.backend_alias, *inner]

    # ---- steps ----

    async def _live(self, receive: Receive, send: Send) -> None:
        running: list[Embedded] = []
        try:
            while True:
                kind = (await receive())["type"]
                if kind == "lifespan.startup":
                    failure = await self._start(running)
                    if failure is not None:
                        await _stop(running)
                        await send({"type": "lifespan.startup.failed", "message": _describe(failure, "start")})
                        return
                    await send({"type": "lifespan.startup.complete"})
                elif kind == "lifespan.shutdown":
                    failure = await _stop(running)
                    if failure is not None:
                        await send({"type": "lifespan.shutdown.failed", "message": _describe(failure, "stop")})
                        return
                    await send({"type": "lifespan.shutdown.complete"})
                    return
                else:
                    logger.warning("dj_queue: the server sent %r, which the lifespan protocol does not know", kind)
        except asyncio.CancelledError:
            # The server ends without a word: what runs may still finish.
            await _stop(running)
            raise
        finally:
            for each in running:
                each.request_stop()

    async def _start(self, running: list[Embedded]) -> BaseException | None:
        """Start what does not run yet, and wait for it; return the first failure."""
        try:
            from dj_queue.runtime.embedded import Embedded

            if not running:
                running += [Embedded(alias) for alias in self.backend_aliases]
                for each in running:
                    each.start()
        # An exception would tell the server that we do not know the protocol, and it would go on without us.
        except Exception as error:
            return error
        return await _outcome(each.started for each in running)


async def _stop(running: list[Embedded]) -> BaseException | None:
    for each in running:
        each.request_stop()
    return await _outcome(each.ended for each in running)


async def _outcome(futures: Iterable[Future[Any]]) -> BaseException | None:
    """Wait for all of them; return the first failure."""
    results = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    return next((result for result in results if isinstance(result, BaseException)), None)


def _describe(failure: BaseException, what: str) -> str:
    if isinstance(failure, (ImproperlyConfigured, DjQueueError)):
        return f"dj_queue did not {what}: {failure}"
    logger.error("dj_queue did not %s", what, exc_info=failure)
    return f"dj_queue did not {what}: {type(failure).__name__}: {failure}"
