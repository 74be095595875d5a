"""Code that runs when the runtime's processes start, stop and exit: hooks, registered by an app of yours."""

from project import runtime, shared_file, wait_until_finished

from django.apps import AppConfig

from dj_queue.hooks import on_start, on_stop, on_worker_start, register_hook

NOTES = shared_file()  # the runtime's processes write here


def note(line):
    with NOTES.open("a") as notes:
        notes.write(f"{line}\n")


class Hooks(AppConfig):
    """In `INSTALLED_APPS` as "ex17_advanced_hooks.Hooks". A hook is given the live supervisor or runner."""

    name = "ex17_advanced_hooks"

    def ready(self):
        on_start(lambda supervisor: note(f"supervisor: start, {supervisor.metadata['worker_count']} workers"))
        on_stop(lambda supervisor: note("supervisor: stop"))
        on_worker_start(lambda worker: note(f"worker: start, {worker.metadata['threads']} threads"))
        for moment in ("worker.stop", "worker.exit", "supervisor.exit"):
            register_hook(moment, lambda process, moment=moment: note(": ".join(moment.split("."))))


if __name__ == "__main__":
    from tasks import add

    with runtime("--only-work", app="ex17_advanced_hooks.Hooks"):
        wait_until_finished(add.enqueue(1, 2))
    # Processes write at the same time: sorted by who wrote, each in its own order.
    print(*sorted(NOTES.read_text().splitlines(), key=lambda line: line[:6]), sep="\n")
