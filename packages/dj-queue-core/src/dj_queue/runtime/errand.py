"""Work that may not return for long, done beside a thread that has signals to hear meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

_STEP = 0.05


class Errand:
    """One piece of work at a time. What was given up runs on, and until it ends nothing else is begun."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def run[T](self, work: Callable[[], T], *, give_up: Callable[[], bool]) -> T | None:
        """Return or raise what `work` does; None once `give_up` says so, or while the last one is not over."""
        if self.busy:
            return None
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        # A daemon: it must not keep the process from ending.
        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there can be no more threads
            self._thread = None
            return work()
        # In steps, which let a signal through.
        while self._thread.is_alive():
            self._thread.join(_STEP)
            if self._thread.is_alive() and give_up():
                return None
        return done.result()
