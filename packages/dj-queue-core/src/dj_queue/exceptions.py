"""Every error dj-queue raises on purpose."""


class DjQueueError(Exception):
    """The root of dj-queue's own errors."""


class EnqueueError(DjQueueError):
    """A job was refused before it was stored. Nothing was written."""


class ArgumentsError(EnqueueError, TypeError):
    """The arguments cannot be stored as JSON, or do not fit the task.

    Also a `TypeError`, which is what Django's own task backends raise here.
    """


class UndecodableArgumentsError(ArgumentsError, ValueError):
    """The arguments hold bytes that are not UTF-8.

    Also a `ValueError`, which is what Django's own task backends raise here.
    """


class NotJSONError(DjQueueError, TypeError):
    """A value would not come back from the database as it went in."""


class NotUTF8Error(NotJSONError, ValueError):
    """Bytes are not UTF-8 text."""


class TaskPathError(DjQueueError, ImportError):
    """A stored task path no longer leads to a task."""


class UnreadableJobError(DjQueueError):
    """What is stored of a job cannot be read. It fails, and no other."""


class MissingAddonError(DjQueueError, ImportError):
    """A door of dj-queue leads to a distribution that is not installed."""

    @classmethod
    def of(cls, distribution: str) -> "MissingAddonError":
        return cls(
            f"{distribution} is not installed. Run: pip install {distribution}", name=distribution.replace("-", "_")
        )


class UndiscardableError(DjQueueError):
    """Claimed jobs are running: they cannot be discarded."""


class AlreadyRecorded(DjQueueError):
    """Another scheduler has already enqueued this recurring tick."""


class ProcessExitError(DjQueueError):
    """A supervised runner ended while it held the job."""


class ProcessMissingError(DjQueueError):
    """A job was claimed by a process that is no longer registered."""


class ProcessPrunedError(DjQueueError):
    """The heartbeat of the process that held the job expired."""
