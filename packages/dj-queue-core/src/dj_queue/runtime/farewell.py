"""Hooks of a stop, called beside it: one that does not return holds up neither the stop nor what still runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.db import connections

from dj_queue import hooks
from dj_queue.config import BackendConfig

logger = logging.getLogger("dj_queue")

# Seconds that a stop waits for its hooks before it goes on beside them, at most, and of its time at most this share.
_PATIENCE, _SHARE = 1.0, 0.5
_STEP = 0.05


class Farewell:
    """The hooks of one event, in a thread of their own."""

    def __init__(self, event: str, process: Any, config: BackendConfig) -> None:
        self._event, self._process, self._config = event, process, config
        # A daemon: it must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"{process.name}-{event}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there can be no more threads
            self._run()

    def wait(self, hurried: Callable[[], bool]) -> None:
        """Give the hooks their time before the stop goes on."""
        self._join(time.monotonic() + min(_PATIENCE, self._config.shutdown_timeout * _SHARE), hurried)

    def close(self, until: float, hurried: Callable[[], bool]) -> None:
        """Wait for the hooks until then, on the monotonic clock, and say if they have not returned."""
        self._join(until, hurried)
        if self._thread.is_alive():
            logger.error(
                "dj_queue %s: a hook of %s has not returned, and is left behind. Let hooks end within shutdown_timeout"
                " (%g s).",
                self._process.name,
                self._event,
                self._config.shutdown_timeout,
            )

    def _join(self, until: float, hurried: Callable[[], bool]) -> None:
        # In steps, which let a signal through.
        while self._thread.is_alive() and time.monotonic() < until and not hurried():
            self._thread.join(min(_STEP, max(0.0, until - time.monotonic())))

    def _run(self) -> None:
        hooks.run_hooks(self._event, self._process, self._config)
        if threading.current_thread() is self._thread:
            with suppress(Exception):
                connections.close_all()
