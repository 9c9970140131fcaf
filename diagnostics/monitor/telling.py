"""What is told of a run while it goes on: events, each at the update that is being made unless another is said."""

from collections.abc import Callable

from diagnostics.monitor.guard import warn
from diagnostics.monitor.sending import Silent, Writer

MISUSE = ("step-", "loss-")  # kinds that the user is warned of on the spot


class Telling:
    """Call it to tell an event. `writer`: where to, once there is a run."""

    def __init__(self, step: Callable[[], int]) -> None:
        self.writer: Writer = Silent()
        self._step = step
        self._told: set[str] = set()

    def __call__(self, kind: str, message: str, subject: str = "", step: int | None = None) -> None:
        self.writer.event(self._step() if step is None else step, kind, message, subject)

    def once(self, kind: str, message: str, subject: str = "", key: str = "") -> None:
        """The first of its kind, of this subject and key, and no other."""
        if kind + subject + key in self._told:
            return
        self._told.add(kind + subject + key)
        self(kind, message, subject)
        if kind.startswith(MISUSE):
            warn(message)
