"""Runs the queue: `manage.py dj_queue`."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from dj_queue import __version__
from dj_queue.config import BackendConfig, Overrides, activate, load_config
from dj_queue.runtime.supervisor import AsyncSupervisor, ForkSupervisor


class Command(BaseCommand):
    help = "Run the workers and the dispatcher of a task backend until SIGTERM or SIGINT."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--backend", default="default", help="alias in TASKS (default: %(default)s)")
        parser.add_argument("--config", help="YAML file laid over the alias's OPTIONS")
        parser.add_argument("--mode", choices=["fork", "async"], help="processes (fork) or threads (async)")
        parser.add_argument("--only-work", action="store_true", help="start workers alone")
        parser.add_argument("--only-dispatch", action="store_true", help="start dispatchers alone")
        parser.add_argument("--skip-recurring", action="store_true", default=None, help="start no scheduler")

    def handle(self, *args: Any, **options: Any) -> None:
        overrides = Overrides(
            mode=options["mode"],
            config_file=options["config"],
            only_work=options["only_work"],
            only_dispatch=options["only_dispatch"],
            skip_recurring=options["skip_recurring"],
        )
        try:
            config = load_config(options["backend"], overrides=overrides)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        activate(config)
        self.stdout.write(_summary(config))
        supervisor = {"fork": ForkSupervisor, "async": AsyncSupervisor}[config.mode](config)
        supervisor.run()


def _summary(config: BackendConfig) -> str:
    lines = [
        f"dj-queue {__version__}: backend {config.alias!r} on database {config.database_alias!r}, {config.mode} mode"
    ]
    for worker in config.workers:
        count = f"{worker.processes} worker{'s' if worker.processes > 1 else ''}"
        lines.append(f"  {count} x {worker.threads} threads on queues {', '.join(worker.queues)}")
    if config.dispatchers:
        lines.append(f"  {len(config.dispatchers)} dispatcher{'s' if len(config.dispatchers) > 1 else ''}")
    lines.append("Quit with Ctrl-C.")
    return "\n".join(lines)
