"""Errors of the runtime itself, which no task raised and no caller waits for."""

import logging

from django.utils.module_loading import import_string

from dj_queue.config import BackendConfig

logger = logging.getLogger("dj_queue")


def report(config: BackendConfig, error: BaseException, context: str, *, traceback: bool = True) -> None:
    """Hand `error` to the option `on_thread_error`; log it if there is none, or if that fails too.

    `context` says where it happened: `hook:<event>`, `<kind>.run`, `<kind>.heartbeat` ... `traceback` says
    whether a log shows where it was raised; of a server that went away, that says nothing.
    """
    if config.on_thread_error is None:
        _log(config, error, context, "dj_queue.thread_error", traceback=traceback)
        return
    try:
        import_string(config.on_thread_error)(error)
    except BaseException as failure:  # also SystemExit: a heartbeat, say, must not end for it
        _log(config, error, context, "dj_queue.thread_error", traceback=traceback)
        _log(config, failure, context, "dj_queue.thread_error_callback_failed")


def _log(config: BackendConfig, error: BaseException, context: str, event: str, *, traceback: bool = True) -> None:
    logger.error(
        "%s in %s: %s: %s",
        event,
        context,
        type(error).__name__,
        error,
        exc_info=error if traceback else None,
        extra={
            "event": event,
            "backend_alias": config.alias,
            "thread_error_context": context,
            "thread_error_type": type(error).__name__,
        },
    )
