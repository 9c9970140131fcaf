"""What measuring may cost, and when the next measurement is due.

The promise is over the whole run: all measuring together costs at most max(5 s, budget x unwatched time). The five
seconds are spent in proportion to the square root of the time, so that a run of any length is measured from its first
updates on and still has something left for its end.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

FLOOR_SECONDS = 5.0
FIRST_SECONDS = 2.5  # may be spent at once: a run of a few seconds is measured as densely as it was asked to be
SHARES = {"measured": 0.5, "curvature": 0.5}  # of the allowance, so that neither starves the other


class Budget:
    """Seconds spent so far by kind of measurement, and the latest cost of one of each."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.spent = {"measured": 0.0, "curvature": 0.0, "always": 0.0}
        self.latest = {"measured": 0.0, "curvature": 0.0}
        self._began = time.perf_counter()
        self._last_update = 0.0
        self.update_seconds = float("inf")  # of the fastest update so far, unwatched

    @property
    def total(self) -> float:
        return sum(self.spent.values())

    @property
    def unwatched(self) -> float:
        return max(0.0, time.perf_counter() - self._began - self.total)

    def allowance(self) -> float:
        """Seconds that may have been spent by now."""
        earned = self.share * self.unwatched
        if earned >= FLOOR_SECONDS:
            return earned
        return min(FLOOR_SECONDS, max(FIRST_SECONDS, (FLOOR_SECONDS * earned) ** 0.5))

    def updated(self) -> None:
        """Called once an update: how long do they take?"""
        now = self.unwatched
        self.update_seconds, self._last_update = min(self.update_seconds, now - self._last_update), now

    def affords_first(self, updates: float) -> bool:
        """Whether a first estimate that costs as much as so many updates fits into the floor, or by now."""
        cost = updates * self.update_seconds
        return cost <= FLOOR_SECONDS or self.affords("curvature", cost)

    def affords(self, kind: str, cost: float | None = None) -> bool:
        """Whether one more measurement of this kind, at its latest cost, stays within its share."""
        spent = self.spent[kind] + (self.spent["always"] if kind == "measured" else 0.0)
        return spent + (self.latest[kind] if cost is None else cost) <= SHARES[kind] * self.allowance()

    @contextmanager
    def charge(self, kind: str) -> Iterator[None]:
        """Charge the time inside to a kind; what is charged further inside is not charged twice."""
        began, inside = time.perf_counter(), self.total
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - began - (self.total - inside))

    def add(self, kind: str, seconds: float) -> None:
        self.spent[kind] += seconds

    def cost_of(self, kind: str, seconds: float) -> None:
        """Note what one whole measurement cost: the forecast for the next."""
        self.latest[kind] = seconds
