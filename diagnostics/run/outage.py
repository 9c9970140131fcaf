"""Records that cannot be written: kept in bounded memory, written when that is possible, and the gap is an event."""

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from diagnostics.run.layout import Record

KEPT_BYTES_MAX = 1 << 26
RETRY_SECONDS_MAX = 5.0
log = logging.getLogger("diagnostics")

Item = tuple[str, Record]  # table and record


@dataclass
class Outage:
    """Records that wait for the directory to take them. `lost`: how many no longer fitted into memory."""

    kept: deque[Item] = field(default_factory=deque)
    error: str = ""
    lost: int = 0
    lost_from: int = 0
    lost_to: int = 0
    retry_at: float = 0.0
    _bytes: int = 0
    _since: float = 0.0
    _pause: float = 0.5

    def begin(self, items: Iterable[Item], error: Exception) -> None:
        """Writing failed. Says so once, in the log; raising or warning could end the training run."""
        now = time.monotonic()
        if not self.error:
            self.error, self._since = str(error), now
            log.warning("recording is interrupted (%s); training goes on, records are kept in memory", error)
        self.retry_at = now + self._pause
        self._pause = min(2 * self._pause, RETRY_SECONDS_MAX)
        self.keep(items)

    def keep(self, items: Iterable[Item]) -> None:
        """The latest records matter most: the oldest go first."""
        for item in items:
            self.kept.append(item)
            self._bytes += _size(item[1])
        while self._bytes > KEPT_BYTES_MAX and self.kept:
            step = self.kept[0][1].step
            self._bytes -= _size(self.kept.popleft()[1])
            self.lost_from = min(self.lost_from, step) if self.lost else step
            self.lost_to, self.lost = max(self.lost_to, step), self.lost + 1

    def take(self) -> list[Item]:
        items, self._bytes = list(self.kept), 0
        self.kept.clear()
        return items

    def end(self) -> str:
        """What to tell about the outage that is over."""
        lost = "nothing was lost"
        if self.lost:
            lost = f"{self.lost} records of steps {self.lost_from} to {self.lost_to} were lost"
        text = f"recording was interrupted for {time.monotonic() - self._since:.1f} s ({self.error}); {lost}"
        log.warning(text)
        self.error, self.lost, self.lost_from, self.lost_to, self._pause, self.retry_at = "", 0, 0, 0, 0.5, 0.0
        return text


def _size(record: Record) -> int:
    """About what a record takes in memory: objects for numbers of a flat row, arrays for the others."""
    values = record.values.values()
    return 400 + sum(value.nbytes if isinstance(value, np.ndarray) else 40 for value in values)
