"""Which updates are measured. Decided before the update begins, so that every part of it knows.

Updates 1 and 2, then every multiple of `every`; the update after a measured one is its partner: two consecutive
gradients and updates make a cosine. Curvature at update 1, then with gaps that grow with the run, or exactly as given.
"""

from dataclasses import dataclass

WIDEST_GAP = 100  # adaptive estimates are at most this far apart, as long as the budget allows it
BATCHES = 8  # independent batches that follow an estimate
PROJECTED = 16  # updates after an estimate on which the weights are projected on its top eigenvector
DISPLACEMENT = 10  # updates over which the displacement is taken that an estimate is given


@dataclass(frozen=True)
class Plan:
    """What is done at one update. `partner`: only what completes the pair of the measured update before it."""

    step: int
    measured: bool = False
    partner: bool = False
    curvature: bool = False


class Schedule:
    """Spacings asked for, and the steps they lead to. Whether the budget affords a step is asked by the caller."""

    def __init__(self, first: int, every: int, curvature_every: int | None) -> None:
        self.first, self.every, self.curvature_every = first, max(1, every), curvature_every
        self.last_measured: int | None = None
        self.last_curvature: int | None = None
        self.skipped = 0  # measured updates that the budget put off

    def wants_measured(self, step: int) -> bool:
        early = step - self.first < 2
        return early or step % self.every == 0 or self._overdue(step)

    def _overdue(self, step: int) -> bool:
        """After the budget put one off, the next affordable update is taken."""
        return self.skipped > 0 and self.last_measured is not None and step - self.last_measured > self.every

    def wants_partner(self, step: int) -> bool:
        return self.last_measured == step - 1

    def wants_curvature(self, step: int) -> bool:
        if self.last_curvature is None:
            return True
        if self.curvature_every is not None:
            return step % self.curvature_every == 0
        age = step - self.first + 1
        return step - self.last_curvature >= max(1, min(age // 4, WIDEST_GAP))

    def soon(self, step: int, within: int) -> bool:
        """Whether the next estimate comes `within` that many updates."""
        if self.curvature_every is not None:
            return (step + within) % self.curvature_every == 0
        return self.wants_curvature(step + within)
