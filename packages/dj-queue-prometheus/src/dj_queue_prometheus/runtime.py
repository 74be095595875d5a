"""Metrics of a runtime: its workers count, and a process beside its supervisor serves what they have counted.

Everything hangs on dj-queue's hooks, registered by `AppConfig.ready` where the setting asks for a port.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dj_queue import events, hooks
from dj_queue.config import observability_token
from dj_queue_prometheus.conf import SETTING, RuntimeMetrics, runtime_metrics
from dj_queue_prometheus.recorder import Recorder

logger = logging.getLogger("dj_queue")

# Seconds for the listener to end when its supervisor does.
_PATIENCE = 5.0


class Listening(NamedTuple):
    folder: Path
    listener: subprocess.Popen[bytes]
    supervisor: int  # its pid
    options: RuntimeMetrics


# By backend alias. What a forked child finds here is its supervisor's.
_listening: dict[str, Listening] = {}
_recorders: dict[str, Recorder] = {}
# In async mode, workers start in threads at the same time.
_lock = threading.Lock()


def register() -> None:
    hooks.register_hook("supervisor.start", start)
    hooks.register_hook("supervisor.exit", stop)
    hooks.register_hook("worker.start", record)
    for kind in ("dispatcher", "scheduler"):
        hooks.register_hook(f"{kind}.start", let_go)


def start(supervisor: Any) -> None:
    """Take the port and start the listener. A port that is taken does not keep the queue from running."""
    options = runtime_metrics()
    alias = supervisor.backend_alias
    port = options.ports.get(alias)
    if port is None:
        return
    try:
        listening = _bind(options.address, port)
    except OSError as error:
        logger.error(
            "dj_queue %s serves no metrics on %s, port %s: %s. The queue runs on without. Stop what listens there,"
            " or choose another port in %s.",
            supervisor.name, options.address, port, os.strerror(error.errno) if error.errno else error, SETTING,
        )  # fmt: skip
        return
    with listening:
        folder = Path(tempfile.mkdtemp(prefix="dj-queue-prometheus-"))
        try:
            listener = _start_listener(listening, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        host, port = listening.getsockname()[:2]
    _listening[alias] = Listening(folder, listener, os.getpid(), options)
    logger.info("dj_queue metrics on http://%s:%s/metrics", f"[{host}]" if ":" in host else host, port)


def record(worker: Any) -> None:
    """Count what this process's workers do: one recorder for all of them."""
    let_go(worker)
    alias = worker.backend_alias
    there = _listening.get(alias)
    with _lock:
        if there is None or alias in _recorders:
            return
        _recorders[alias] = Recorder(
            there.folder, worker.name, backend_alias=alias, most_series=there.options.most_series
        )
        events.subscribe(_recorders[alias], *Recorder.EVENTS)


def let_go(runner: Any) -> None:
    """In a forked child: leave the listener to the supervisor, so that it ends when that does."""
    for there in _listening.values():
        if there.supervisor != os.getpid() and there.listener.stdin is not None:
            there.listener.stdin.close()


def stop(supervisor: Any) -> None:
    alias = supervisor.backend_alias
    recorder = _recorders.pop(alias, None)
    if recorder is not None:
        events.unsubscribe(recorder)
        recorder.close()
    there = _listening.pop(alias, None)
    if there is None:
        return
    if there.listener.stdin is not None:
        with suppress(OSError):
            there.listener.stdin.close()
    try:
        there.listener.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        there.listener.kill()
        there.listener.wait()
    shutil.rmtree(there.folder, ignore_errors=True)


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family)


def _start_listener(listening: socket.socket, folder: Path) -> subprocess.Popen[bytes]:
    # It ends with its supervisor and not before, so that the last jobs are seen too: what a terminal or a service
    # manager sends to the whole group is not for it. A mask is inherited, so there is no moment without it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT))
    try:
        listener = subprocess.Popen(
            [sys.executable, "-P", "-m", "dj_queue_prometheus.listener"],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            # The same modules as here, wherever this process found them.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert listener.stdin is not None
    given = {"socket": listening.fileno(), "folder": str(folder), "token": observability_token()}
    listener.stdin.write(json.dumps(given).encode() + b"\n")
    listener.stdin.flush()
    return listener
