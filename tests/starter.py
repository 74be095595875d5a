"""Starts `python -m MODULE ARGUMENTS` by forking a process that has imported Django already, all but its settings.

An interpreter that imports Django costs five times what the rest of a runtime's start does, and a suite starts
hundreds. Settings, applications and dj-queue itself are imported by each process for itself.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What an interpreter reads once, as it starts.
_READ_AT_START = ("PYTHONHASHSEED", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONTRACEMALLOC", "PYTHONASYNCIODEBUG")


class Started:
    """A process that was started, as `subprocess.Popen` has it."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._channel = channel

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            with self._channel:
                self.returncode = os.waitstatus_to_exitcode(int.from_bytes(self._channel.recv(8)))
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Starter:
    """The process that forks the others. One for each process of pytest's."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dj-queue-starter-")
        self._address = str(Path(self._folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self._address)
            listening.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.starter", str(listening.fileno())],
                cwd=ROOT,
                env={**os.environ, **settings, "PYTHONUNBUFFERED": "1"},
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,  # its end is the starter's
            )

    def start(self, module: str, *arguments: str, env: dict[str, str], output: int) -> Started:
        """Start the module in a session of its own; what it prints goes to the file descriptor."""
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(self._address)
        wanted = json.dumps({"module": module, "arguments": arguments, "env": env}).encode()
        socket.send_fds(channel, [len(wanted).to_bytes(8)], [output])
        channel.sendall(wanted)
        return Started(channel, int.from_bytes(channel.recv(8)))

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()


def can_start(env: dict[str, str]) -> bool:
    """Whether a fork is as good as an interpreter of its own, with that environment."""
    return all(env.get(name) == os.environ.get(name) for name in _READ_AT_START)


def _import_all_but_settings(env: dict[str, str]) -> None:
    """Import what a runtime imports, as far as that needs no settings."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.environ.update(env)
        import django

        django.setup()
        importlib.import_module("dj_queue.runtime.supervisor")
        importlib.import_module("dj_queue.management.commands.dj_queue")
        with os.fdopen(writer, "w") as told:
            told.write("\n".join(sys.modules))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        names = told.read().split("\n")
    os.wait()
    for name in names:
        if name.partition(".")[0] not in ("dj_queue", "tests"):
            with suppress(Exception):  # what wants settings, or the applications
                importlib.import_module(name)


def _serve(listening: socket.socket) -> socket.socket:
    """Fork for each who connects. Returns in what was forked, with the channel to who wants it."""
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        if sys.stdin in ready:  # it was closed: the suite is over
            os._exit(0)
        channel, _ = listening.accept()
        if os.fork() == 0:
            # It waits for the one that is wanted, and tells how that ended.
            listening.close()
            pid = os.fork()
            if pid == 0:
                return channel
            status = os.waitpid(pid, 0)[1]
            with suppress(OSError):
                channel.send(status.to_bytes(8))
            os._exit(0)
        channel.close()


def _become(channel: socket.socket) -> str:
    """Make this process what is wanted, as an interpreter of its own would be; return the module to run."""
    os.setsid()
    channel.send(os.getpid().to_bytes(8))
    size, (output,), _, _ = socket.recv_fds(channel, 8, 1)
    with channel, channel.makefile("rb") as stream:
        wanted = json.loads(stream.read(int.from_bytes(size)))
    for there, number in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(there, number)
    os.close(output)
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.path[1:1] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.argv = ["", *wanted["arguments"]]
    return str(wanted["module"])


if __name__ == "__main__":
    given = {name: os.environ.pop(name) for name in ("DJANGO_SETTINGS_MODULE", "DJ_QUEUE_TEST_DATABASE")}
    for each in os.environ.pop("PYTHONPATH", "").split(os.pathsep):
        if each in sys.path[1:]:
            del sys.path[sys.path.index(each, 1)]
    _import_all_but_settings(given)
    gc.collect()
    gc.freeze()
    module = _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
