"""The promised path of the gunicorn hooks, which the distribution dj-queue-gunicorn holds."""

from dj_queue.exceptions import MissingAddonError

try:
    from dj_queue_gunicorn import post_fork, worker_exit
except ModuleNotFoundError as error:
    if error.name != "dj_queue_gunicorn":
        raise  # it is there, and broken: its own error says how
    raise MissingAddonError.of("dj-queue-gunicorn") from error

__all__ = ["post_fork", "worker_exit"]
