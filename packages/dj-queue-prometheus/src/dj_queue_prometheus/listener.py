"""Serves what workers have counted: `python -m dj_queue_prometheus.listener`, started by a supervisor.

A process of its own, because a thread in a supervisor that forks would leave its children with whatever
lock it held. It loads neither Django nor the project. Its standard input is its supervisor's life: the
first line says what to serve, and the end of it, however that came, ends the process and removes the folder.
Signals to the whole group are blocked by the thread that starts it.
"""

from __future__ import annotations

import hmac
import json
import shutil
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


# Clients at a time: a scrape takes milliseconds. For one more, the one that was there first has to go.
MOST_CLIENTS = 16
# Seconds for a whole request, and then for its answer.
TO_ASK = 10.0
TO_READ = 30.0


class Handler(BaseHTTPRequestHandler):
    server_version = "dj-queue"
    sys_version = ""
    timeout = 10  # seconds for a client that sends nothing
    server: Server
    folder: str
    token: str | None = None

    def do_GET(self) -> None:
        self.server.asked(self.connection)
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, b"not found: use /metrics\n")
        elif self.token is not None and not self._has_token(self.token):
            self._answer(401, b"unauthorized\n", {"WWW-Authenticate": "Bearer"})
        else:
            self._answer(200, _exposition(self.folder), {"Content-Type": CONTENT_TYPE})

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes are no news."""

    def _has_token(self, token: str) -> bool:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        # Headers are read as Latin-1.
        sent = given.strip(" ").encode("latin-1", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(sent, token.encode("utf-8", "surrogatepass"))

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A limited number of clients at a time, each for a limited time, however slowly it sends or reads."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        # Until when on the monotonic clock, in the order in which they came.
        self._clients: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._clients) >= MOST_CLIENTS:
                _hang_up(next(iter(self._clients)))
                self._clients.pop(next(iter(self._clients)))
            self._clients[request] = time.monotonic() + TO_ASK
        super().process_request(request, client_address)

    def asked(self, client: socket.socket) -> None:
        with self._lock:
            if client in self._clients:
                self._clients[client] = time.monotonic() + TO_READ

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Every half a second or so: end those whose time is up."""
        now = time.monotonic()
        with self._lock:
            for client in [client for client, until in self._clients.items() if until < now]:
                _hang_up(client)
                del self._clients[client]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in between is no news either."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _hang_up(client: socket.socket) -> None:
    """Its thread, which waits for it, then ends by itself."""
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def main() -> None:
    given = json.loads(sys.stdin.readline())
    Handler.folder, Handler.token = given["folder"], given["token"]
    server = Server(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=given["socket"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        sys.stdin.read()
    finally:
        shutil.rmtree(given["folder"], ignore_errors=True)


def _exposition(folder: str) -> bytes:
    registry = CollectorRegistry()
    for _ in range(3):
        # A file that is just being made has no size yet.
        with suppress(struct.error, FileNotFoundError):
            if Path(folder).is_dir():
                MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
                return generate_latest(registry)
            break
        registry = CollectorRegistry()
    return b""


if __name__ == "__main__":
    main()
