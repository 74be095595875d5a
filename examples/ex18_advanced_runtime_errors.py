"""Errors of the runtime itself, which no task raised: the option `on_thread_error` hears of them.

Here a hook fails. Jobs run all the same, and what a task raises is not told here: that is a failed job.
"""

from project import runtime, shared_file, wait_for, wait_until_finished

from django.apps import AppConfig

from dj_queue.hooks import on_worker_start

HEARD = shared_file()  # the runtime's processes write here


def report(error):
    """The option's callable: an error tracker, in your project."""
    with HEARD.open("a") as heard:
        heard.write(f"{type(error).__name__}: {error}\n")


class Hooks(AppConfig):
    name = "ex18_advanced_runtime_errors"

    def ready(self):
        @on_worker_start
        def fail(worker):
            raise RuntimeError("the metrics server is away")


if __name__ == "__main__":
    from tasks import add, charge

    worked, failed = add.enqueue(1, 2), charge.enqueue(1, -5)
    with runtime(app="ex18_advanced_runtime_errors.Hooks", on_thread_error="ex18_advanced_runtime_errors.report"):
        wait_for(HEARD.read_text)
        wait_until_finished(worked, failed)
    print("on_thread_error heard:", HEARD.read_text().strip())
    print(f"the jobs: {worked.status}, {failed.status}")
