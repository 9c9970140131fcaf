"""What one thread rings and another waits for, safe against an exception that a signal raises anywhere (Ctrl-C).

`threading.Event` takes its lock in Python code: raised between the lock and the block that releases it, the exception
leaves it held for ever, and every thread that rings or waits later hangs. `SimpleQueue` does each in one C call.
"""

from queue import Empty, SimpleQueue


class Bell:
    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        self._rings.put(None)

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it was rung; rings before this returns count as one."""
        try:
            self._rings.get(timeout=seconds)
        except Empty:
            return False
        while not self._rings.empty():
            self._rings.get()
        return True
