"""Stretches of a run in which the loss did not move.

Nothing here decides whether that is a fault: a converged run is flat too.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding, Severity
from diagnostics.rules._recurrence import AGAIN, in_turn, recurrence
from diagnostics.rules._words import number
from diagnostics.run import Run


@dataclass(frozen=True)
class Flat:
    """A stretch of the run in which the loss did not move. `share`: of the run; `escaped`: it fell clearly
    afterwards."""

    first_step: int
    last_step: int
    level: float
    share: float
    escaped: bool

    @property
    def middle(self) -> int:
        return (self.first_step + self.last_step) // 2

    @property
    def stood(self) -> str:
        """What the loss did."""
        return f"stood at {number(self.level)} from step {self.first_step} to {self.last_step}"

    def holds(self, steps: Any) -> Any:
        """Which of these steps, an array or a column, are of it."""
        return (steps >= self.first_step) & (steps <= self.last_step)

    @property
    def ended(self) -> int | None:
        """Its last step, if the loss fell afterwards."""
        return self.last_step if self.escaped else None

    @property
    def severity(self) -> Severity:
        """Of a fault that explains it."""
        return "warning" if self.escaped else "critical"

    def finding(
        self,
        kind: str,
        cause: str | None,
        layers: tuple[str, ...],
        summary: str,
        evidence: dict[str, float],
        remedies: tuple[str, ...],
        charts: tuple[Chart, ...],
        formula: str = "",
        severity: Severity | None = None,
    ) -> Finding:
        """Of a fault that explains it; or of another severity."""
        known = (severity or self.severity, self.first_step, self.ended)
        return Finding(kind, cause, *known, layers, summary, evidence, remedies, charts, formula)


@lru_cache(maxsize=16)
def flats(run: Run, blocks: int = 20, still: float = 0.02) -> tuple[Flat, ...]:
    """The stretches, longest first, in which the medians of blocks of the loss agree; none shorter than three blocks.

    Medians agree within three of their standard errors, or within `still` of the loss's whole fall (of its size where
    it never fell): a fiftieth is what an eye sees as level on a plot. Easy and hard batches that come in the same order
    in each epoch make no progress.
    """
    history = signals.loss(run)
    kept = np.isfinite(history.values)
    values, steps = _without_turns(history.values[kept]), history.steps[kept]
    size = max(3, len(values) // blocks)
    count = len(values) // size
    if count < 4:
        return ()
    medians = np.median(values[: count * size].reshape(count, size), axis=1)
    error = 1.2533 * history.noise / np.sqrt(size)
    fall = history.start - history.best
    tolerance = max(3 * error, still * (fall if fall > 0.05 * abs(history.start) else abs(history.start)))
    found = []
    for first, last in _level_spans(medians, tolerance):
        where = float(np.median(medians[first:last]))
        after = medians[last:]
        escaped = bool(len(after) and where - after.min() > max(5 * error, 0.1 * abs(where - history.best), tolerance))
        end = int(steps[min(last * size, len(steps)) - 1])
        arrived = np.abs(values[first * size : (first + 1) * size] - where) <= max(tolerance, 3 * history.noise)
        begin = int(steps[first * size + np.argmax(arrived)])
        found.append(Flat(begin, end, where, (last - first) / count, escaped))
    return tuple(sorted(found, key=lambda each: -each.share))


def _without_turns(values: np.ndarray) -> np.ndarray:
    """Without what a loss has at each place of an epoch, where it comes again."""
    late = values[len(values) // 2 :]
    found = recurrence(late)
    if found.correlation < AGAIN:
        return values
    places = (np.arange(len(values)) - len(values)) % found.after
    return values - in_turn(late, found.after)[places]


def _level_spans(medians: np.ndarray, tolerance: float, least: int = 3) -> list[tuple[int, int]]:
    """Disjoint spans [first, last) within the tolerance: the longest, then the longest of what lies on either side."""
    best, where, begin = 0, 0, 0
    for end in range(len(medians)):
        while np.ptp(medians[begin : end + 1]) > tolerance:
            begin += 1
        if end + 1 - begin > best:
            best, where = end + 1 - begin, begin
    if best < least:
        return []
    left = _level_spans(medians[:where], tolerance, least)
    right = _level_spans(medians[where + best :], tolerance, least)
    moved = [(first + where + best, last + where + best) for first, last in right]
    return [*left, (where, where + best), *moved]


def flat(run: Run) -> Flat | None:
    """The longest stretch without progress."""
    return next(iter(flats(run)), None)
