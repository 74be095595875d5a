"""Runs the queue: `manage.py dj_queue`."""

from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dj_queue import __version__
from dj_queue.config import BackendConfig, Overrides, activate, load_config
from dj_queue.runtime import host

_LONGEST = 86400


class Command(BaseCommand):
    help = (
        "Run the workers and the dispatcher of a task backend until SIGTERM or SIGINT. Exits with 0 when all that"
        " ran was brought to an end, with 3 when jobs had to be given back or given up, with 1 after SIGQUIT."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--backend", default="default", help="alias in TASKS (default: %(default)s)")
        parser.add_argument("--config", help="YAML file laid over the alias's OPTIONS")
        parser.add_argument("--mode", choices=["fork", "async"], help="processes (fork) or threads (async)")
        parser.add_argument("--only-work", action="store_true", help="start workers alone")
        parser.add_argument("--only-dispatch", action="store_true", help="start dispatchers alone")
        parser.add_argument("--skip-recurring", action="store_true", default=None, help="start no scheduler")
        parser.add_argument(
            "--drain", action="store_true", help="end once no job is due, running, or ready in queues that are worked"
        )
        parser.add_argument("--reload", action="store_true", help="start again when code changes, for development")
        parser.add_argument("--reloaded", action="store_true", help=SUPPRESS)
        parser.add_argument(
            "--wait",
            type=_seconds,
            default=30.0,
            help="seconds to wait for database and migrations (default: %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            host.require()
        except host.UnsupportedHostError as error:
            raise CommandError(str(error)) from error
        # Not before: they need what not every system has.
        from dj_queue.runtime import reload
        from dj_queue.runtime.runner import End
        from dj_queue.runtime.startup import NotReadyError, await_schema, shortages
        from dj_queue.runtime.supervisor import AsyncSupervisor, ForkSupervisor

        if options["reload"] and options["drain"]:
            raise CommandError("--drain ends by itself, and --reload never does: give one of them.")
        if options["reload"]:
            reload.run("--reload", instead="--reloaded")
            return
        config = _config(options)
        _require_pidfile(config)
        try:
            await_schema(config, seconds=options["wait"], say=self.stderr.write)
        except (NotReadyError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error
        activate(config)
        self.stdout.write(_summary(config))
        for shortage in shortages(config):
            self.stderr.write(f"{shortage.message} {shortage.hint}")
        supervisor = {"fork": ForkSupervisor, "async": AsyncSupervisor}[config.mode](config)
        supervisor.say = self.stdout.write
        supervisor.until_drained = options["drain"]
        with _refusing():
            end = supervisor.run(heed_interrupts=not options["reloaded"])
        if end is not End.DRAINED:
            self.stderr.write("Jobs were still running when the time was up: they are given back or given up.")
            supervisor.leave(end)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST:  # NaN is neither
        raise ArgumentTypeError(f"expected a number of seconds from 0 to {_LONGEST} (a day), got {text!r}")
    return seconds


def _config(options: dict[str, Any]) -> BackendConfig:
    overrides = Overrides(
        mode=options["mode"],
        config_file=options["config"],
        only_work=options["only_work"],
        only_dispatch=options["only_dispatch"],
        skip_recurring=options["skip_recurring"],
    )
    try:
        return load_config(options["backend"], overrides=overrides)
    except ImproperlyConfigured as error:
        raise CommandError(str(error)) from error


@contextmanager
def _refusing() -> Iterator[None]:
    from dj_queue.runtime.pidfile import PidfileError, SupervisorRunningError

    try:
        yield
    except SupervisorRunningError as error:
        raise CommandError(f"{error}. Stop that one first, or name another file for this one.") from error
    except PidfileError as error:
        raise CommandError(str(error)) from error


def _require_pidfile(config: BackendConfig) -> None:
    """Say at once what keeps it from being had, and not after the database was waited for."""
    from dj_queue.runtime.pidfile import pidfile

    if config.supervisor_pidfile is not None and Path(config.supervisor_pidfile).is_dir():
        raise CommandError(f"supervisor_pidfile {config.supervisor_pidfile!r} is a folder. Name a file in it.")
    with _refusing(), pidfile(config.supervisor_pidfile):
        pass


def _summary(config: BackendConfig) -> str:
    lines = [
        f"dj-queue {__version__}: backend {config.alias!r}, database {config.database_alias!r}, mode {config.mode}"
    ]
    for worker in config.workers:
        count = f"{worker.processes} worker{'s' if worker.processes > 1 else ''}"
        threads = f"{worker.threads} thread{'s' if worker.threads > 1 else ''}"
        lines.append(f"  {count} of {threads} on queues {', '.join(worker.queues)}")
    if config.dispatchers:
        lines.append(f"  {len(config.dispatchers)} dispatcher{'s' if len(config.dispatchers) > 1 else ''}")
    if config.scheduler_needed:
        tasks = len(config.recurring)
        lines.append(f"  scheduler with {tasks} recurring task{'' if tasks == 1 else 's'} in the settings")
    lines.append("Quit with Ctrl-C.")
    return "\n".join(lines)
