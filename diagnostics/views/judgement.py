"""What becomes of a run's directions under an optimizer's settings, in sentences. No streamlit here."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagnostics.charts import dynamics
from diagnostics.charts.dynamics import Optimizer
from diagnostics.charts.parts import Frame
from diagnostics.views.text import number


@dataclass(frozen=True)
class Judgement:
    """`found`: the fates of the directions whose curvature is known at the estimate after update `step`. `steps` (T,),
    `rates` (T,): the largest stable rate at each estimate of the run."""

    optimizer: Optimizer
    found: Frame
    step: int
    steps: NDArray
    rates: NDArray

    @property
    def limit(self) -> float:
        """The largest stable rate at this estimate; without bound where nothing curves upwards."""
        top = float(self.found["curvature"].max()) if len(self.found) else 0.0
        return dynamics.largest_rate(self.optimizer, top) if top > 0 else np.inf

    @property
    def past(self) -> tuple[int, float] | None:
        """The step whose limit the rate exceeds, this one or else that of the lowest limit, and how many times."""
        if self.optimizer.lr > self.limit:
            return self.step, self.optimizer.lr / self.limit
        lowest = int(self.rates.argmin()) if len(self.rates) else 0
        if len(self.rates) and self.optimizer.lr > self.rates[lowest]:
            return int(self.steps[lowest]), float(self.optimizer.lr / self.rates[lowest])
        return None

    @property
    def growth(self) -> str:
        """The direction of negative curvature that is left the fastest; "" where none is certain."""
        growing = self.found[self.found["fate"] == "escapes"]
        if growing.empty:
            return ""
        fastest = growing.loc[growing["steps"].idxmin()]
        return f"a direction of curvature {number(fastest['curvature'])} grows tenfold in {counted(fastest['steps'])}"

    @property
    def headline(self) -> str:
        at, past = f"at step {self.step:,}", self.past
        if not np.isfinite(self.limit):
            return f"No direction of positive curvature is known {at}"
        if past and past[0] == self.step:
            return f"Unstable for the curvature {at}: the rate is {number(past[1])} times the largest stable one"
        if past:
            return f"Within the limit {at}, but {number(past[1])} times the largest stable rate at step {past[0]:,}"
        if self.growth:
            return f"Within the limit {at}, but a direction of negative curvature grows"
        every = f"at all {len(self.rates):,} estimates" if len(self.rates) > 1 else at
        return f"Stable {every}: {pace(self.found)}"


def pace(found: Frame) -> str:
    """How long the slowest direction takes, and whether it swings; one whose step is lost in rounding never moves."""
    shrinking = found[found["fate"].isin(["decays", "oscillates"])]
    swinging, steps = int((shrinking["fate"] == "oscillates").sum()), float(shrinking["steps"].max())
    takes = f"shrinks tenfold in {counted(steps)}" if np.isfinite(steps) else "does not move"
    if len(shrinking) == 1:
        return f"the steepest direction, the only one measured, {takes}" + (", swinging" if swinging else "")
    if swinging == len(shrinking):
        return f"every measured direction swings, and the slowest {takes}"
    steeper = ("", "; the steepest swings")[swinging] if swinging < 2 else "; steeper ones swing"
    return f"the slowest measured direction {takes}{steeper}"


def counted(steps: float) -> str:
    return "1 step" if steps <= 1 else f"{rounded(steps)} steps"


def rounded(steps: float) -> str:
    """Whole steps, of which three digits say enough."""
    return number(float(f"{np.ceil(steps):.3g}"))
