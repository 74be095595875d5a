"""Whether the queue is being worked: `manage.py dj_queue_health`."""

import socket
from argparse import ArgumentTypeError
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from dj_queue.config import load_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Process
from dj_queue.operations import processes, schema

_LONGEST = 100 * 365 * 86400


class Command(BaseCommand):
    help = (
        "Exit with 0 if a process of the backend, a kind of it or one on a host, has a fresh heartbeat, with 1 if"
        " none has or all workers hang."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--backend", default="default", help="alias in TASKS (default: %(default)s)")
        parser.add_argument(
            "--max-age", type=_age, help="seconds a heartbeat counts as fresh (default: process_alive_threshold)"
        )
        parser.add_argument("--kind", choices=Process.Kind.values, type=_kind, help="ask for processes of this kind")
        parser.add_argument(
            "--host",
            nargs="?",
            const=socket.gethostname(),
            metavar="NAME",
            help="ask for processes on this host (without NAME: the one that this runs on, %(const)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            config = load_config(options["backend"])
            schema.require_usable(config.database_alias)
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        max_age = config.process_alive_threshold if options["max_age"] is None else options["max_age"]
        try:
            if old := schema.predecessor(config.database_alias):
                raise CommandError(f"unhealthy: {old}")
            fresh = processes.count_fresh(config, max_age=max_age, kind=options["kind"], hostname=options["host"])
            # Who asks for a kind or a host is told of that.
            idle = options["kind"] is options["host"] is None and processes.lacks_workers(config, max_age=max_age)
        except Error as error:
            reason = f"the database {config.database_alias!r} does not answer: {error}"
            if dialect_for(config.database_alias).lacks_table(error):
                reason = schema.obstacle(config.database_alias) or reason
            raise CommandError(f"unhealthy: {reason}") from error
        if not fresh:
            wanted = options["kind"].lower() if options["kind"] else "process"
            place = f" on host {options['host']!r}" if options["host"] is not None else ""
            raise CommandError(
                f"unhealthy: no {wanted} of {config.alias!r}{place} has had a heartbeat within {max_age:g} seconds."
                " Start one: manage.py dj_queue"
            )
        if idle:
            age = max(max_age, config.process_alive_threshold)
            raise CommandError(
                f"unhealthy: a supervisor of {config.alias!r} is alive, and none of its workers has had a heartbeat"
                f" within {age:g} seconds: they hang, or do not start. Read the log of manage.py dj_queue."
            )
        self.stdout.write("healthy")


def _kind(text: str) -> str:
    return text.capitalize()


def _age(text: str) -> int:
    age = int(text) if text.strip("+-").isdecimal() else 0
    if not 0 < age <= _LONGEST:
        raise ArgumentTypeError(f"expected a whole number of seconds from 1 to {_LONGEST} (100 years), got {text!r}")
    return age
