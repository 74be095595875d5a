"""A TCP proxy between a runtime and its PostgreSQL, which can fall silent without a word."""

import json
import select
import socket
import threading
from contextlib import suppress
from typing import Any

_CHUNK = 65536


class Proxy:
    """Passes bytes on, until it is told not to. The system goes on acknowledging what is sent to it."""

    def __init__(self, database: dict[str, Any]) -> None:
        self._database = database
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[_Link] = []
        self.deaf = False  # whether it also freezes whatever is connected from now on
        self.unanswered = 0  # what was connected since
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def settings(self) -> dict[str, Any]:
        """The database's settings, by way of the proxy."""
        host, port = self._listener.getsockname()
        return {**self._database, "HOST": host, "PORT": str(port)}

    @property
    def environment(self) -> dict[str, str]:
        """For a runtime of the test's."""
        given = {key: value for key, value in self.settings.items() if key != "TEST"}
        return {"DJ_QUEUE_TEST_DATABASE": json.dumps(given)}

    def freeze(self) -> int:
        """What is connected stays connected, and hears nothing any more; return how many that were."""
        return sum(link.stop() for link in list(self._links))

    def cut(self) -> int:
        """Clients see the end of their connections, and the server does not; return how many that were."""
        stopped = [link for link in list(self._links) if link.stop()]
        for link in stopped:
            link.client.close()
        return len(stopped)

    def refuse(self) -> None:
        """Nothing connects any more; what is connected stays."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in list(self._links):
            link.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                link = _Link(client, self._connect())
                self._links.append(link)
                if self.deaf:
                    self.unanswered += 1
                else:
                    link.start()

    def _connect(self) -> socket.socket:
        host, port = self._database["HOST"], self._database["PORT"] or 5432
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server


class _Link:
    """One connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self._peers = {client: server, server: client}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """Pass on nothing more; return whether it did so until now."""
        was_passing = self._thread.is_alive()
        self._stopped.set()
        if was_passing:
            self._thread.join()
        return was_passing

    def close(self) -> None:
        self.stop()
        for peer in self._peers:
            peer.close()

    def _pass_on(self) -> None:
        with suppress(OSError):
            while not self._stopped.is_set():
                for source in select.select(list(self._peers), [], [], 0.02)[0]:
                    data = source.recv(_CHUNK)
                    if not data:
                        for peer in self._peers:
                            peer.close()
                        return
                    self._peers[source].sendall(data)
