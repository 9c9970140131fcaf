"""Calls back after flushes, in a thread of its own: a diagnosis that takes seconds must not delay the next flush."""

import threading
from collections.abc import Callable

from diagnostics.run.bell import Bell

_STOP_SECONDS = 10.0  # a callback that is still running then ends with the process


class Watcher:
    """`wake` asks for a call soon; calls that were asked for while one was running become one."""

    def __init__(self, callback: Callable[[], None], failed: Callable[[Exception], None]):
        self._callback = callback
        self._failed = failed
        self._wanted = Bell()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="diagnostics-on-flush", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wanted.ring()

    def stop(self) -> None:
        self._stopped = True
        self._wanted.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_SECONDS)

    def _work(self) -> None:
        while self._wanted.wait() and not self._stopped:
            try:
                self._callback()
            except Exception as error:  # becomes an event; the next flush calls again
                self._failed(error)
