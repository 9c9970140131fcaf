"""Which updates are measured. Decided before the update begins, so that every part of it knows.

Updates 1 and 2, then every multiple of `every` - from 10 on one each `every` or `every` + 1, so that a loop of any
period, as of tasks in turns or the batches of an epoch, is measured in all its phases. The update after a measured one
is its partner: two consecutive gradients and updates make a cosine. Curvature at update 1, then with gaps that grow
with the run, or exactly as given. What the budget does not afford is put off.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from diagnostics.monitor.budget import FIRST_ESTIMATE, Budget
from diagnostics.monitor.together import Together

WIDE, DRIFT = 10, (5**0.5 - 1) / 2  # updates beyond `every` from one to the next, on average: in step with no period
WIDEST_GAP = 100  # adaptive estimates are at most this far apart, as long as the budget allows it
BATCHES = 8  # independent batches that follow an estimate
PROJECTED = 16  # updates after an estimate on which the weights are projected on its top eigenvector
# What an estimate costs before one was made, whole or of the stability ratio alone: products (measured; one of them to
# tell what a product takes), and seconds a weight on a CPU, where the basis of a large model with small batches costs
# more than the products (measured).
WHOLE, QUICK = (66.0, 6e-7), (13.5, 1e-7)
ALWAYS = (5e-4, 5e-10)  # seconds, and those a weight, that every update costs on a CPU (measured)
PRODUCT = 2.0  # updates that a product takes until it is known: ten in an LSTM, whose fused kernels have no derivative
GRADIENT = 5.0  # forwards that it costs at most (Griewank and Walther 2008, Evaluating Derivatives, 3.3)
AGAIN = 100  # a budget that refused is asked again after this part of the updates so far: it grows as the run does
QUICKLY = 0.5  # of what curvature may take, for quick estimates while a whole one is not affordable
DISPLACEMENT = 10  # updates over which the displacement is taken that an estimate is given


@dataclass(frozen=True)
class Plan:
    """What is done at one update. `partner`: only what completes the pair of the measured update before it."""

    step: int
    measured: bool = False
    partner: bool = False
    curvature: bool = False

    @property
    def kind(self) -> str:
        """What the cost of this update's hooks is charged to."""
        return "measured" if self.measured or self.partner else "always"


class Schedule:
    """`plan(step)` is asked for once for every update. `tell_once` is told when the budget puts a measurement off."""

    def __init__(
        self,
        first: int,
        every: int,
        curvature_every: int | None,
        budget: Budget,
        together: Together,
        tell_once: Callable[[str, str], None],
        weights: int = 0,
    ) -> None:
        """`weights`: their number, on a CPU."""
        self._weights = weights
        self._spacing = every + DRIFT if every >= WIDE else float(max(1, every))
        self.first, self.every, self.curvature_every = first, max(1, every), curvature_every
        self.last_curvature: int | None = None
        self._whole_seconds: float | None = None  # of the last estimate of all that is wanted
        self._quick_seconds: float | None = None  # of the last one of the steepest direction alone
        self._spent_quickly = 0.0
        # Unwatched seconds when each was planned: the last measured update, the next estimate, the last, the last whole
        # one. While an estimate is made its own seconds would count.
        self._measured_at = self._planned_at = self._estimated_at = self._whole_at = 0.0
        self._product_seconds: float | None = None  # of the model's first batch
        self._asked_again = False  # how long a product takes
        self._budget, self._together, self._tell_once = budget, together, tell_once
        self._last_measured: int | None = None
        self._put_off = 0  # measured updates in a row that were not affordable
        self._refused_until = {"measured": 0, "curvature": 0}
        # Where several processes must do the same: the next measured update, whether it has an estimate, and whether
        # batches follow the last one.
        self._agreed: tuple[int, bool] | None = None
        self.follows = True

    def plan(self, step: int, closure: bool) -> Plan:
        """The plan of update `step`; `closure`: whether curvature can be measured, as far as is known."""
        if self._together.active:
            return self._common_plan(step, closure)
        measured = self._measured(step)
        return self._planned(step, measured, closure and not self._together.alone and self._curvature(step))

    def _planned(self, step: int, measured: bool, curvature: bool) -> Plan:
        partner = self._last_measured == step - 1 and not measured
        if measured:
            self._last_measured, self._put_off, self._measured_at = step, 0, self._budget.unwatched
        if curvature:
            self._planned_at = self._budget.unwatched
        return Plan(step, measured, partner, curvature)

    def _common_plan(self, step: int, closure: bool) -> Plan:
        """Rank 0 decides, at the end of each measured update, which one is next and what else happens until then."""
        if self._last_measured == step - 1:
            following = self._ahead(step)
            decision = [step, following, self._curvature(following), self._budget.affords("curvature")]
            step, following, curvature, self.follows = self._together.decided(decision)
            self._agreed = following, bool(curvature)
        if self._agreed is None or step != self._agreed[0]:
            return self._planned(step, False, False)
        return self._planned(step, True, closure and self._agreed[1])

    def _early(self, step: int) -> bool:
        return step - self.first < 2

    def _measured(self, step: int) -> bool:
        overdue = self._put_off > 0 and self._last_measured is not None and step - self._last_measured > self.every
        if self._early(step):
            return True
        return (step == self._due(step) or overdue) and self._affords(step)

    def _due(self, step: int) -> int:
        """The first update from `step` on that is to be measured, if the budget allows it."""
        return int(math.ceil(step / self._spacing) * self._spacing)

    def _affords(self, step: int) -> bool:
        due = self._budget.due
        if self._granted("measured", step, lambda: due("measured", self._budget.latest["measured"], self._measured_at)):
            return True
        self._put_off += 1
        self._stretched()
        return False

    def _granted(self, kind: str, step: int, asked: Callable[[], bool]) -> bool:
        """Decisions of the budget are dear where updates are short."""
        if step < self._refused_until[kind]:
            return False
        granted = asked()
        self._refused_until[kind] = 0 if granted else step + (step - self.first) // AGAIN
        return granted

    def _ahead(self, step: int) -> int:
        """The next measured update from `step` on: farther away as long as the budget is short."""
        if self._early(step):
            return step
        following = self._due(step)
        if not self._affords(step):
            following += self.every * 2 ** min(self._put_off, 10)
        exact = self.curvature_every
        return min(following, -(-step // exact) * exact) if exact else following

    def _curvature(self, step: int) -> bool:
        if self.curvature_every == 0:
            return False
        if self.last_curvature is None:
            return self._first_curvature(step)
        return self.wants_curvature(step) and self.affords_curvature(step)

    def affords_curvature(self, step: int) -> bool:
        """One more estimate after the first, whole or quick."""
        if self.curvature_every is not None:
            return True
        return self._granted("curvature", step, lambda: self._affords_whole() or self._affords_quick())

    def _affords_whole(self) -> bool:
        return self._budget.due("curvature", self._whole_forecast(), self._whole_at)

    def _affords_quick(self) -> bool:
        """What quick estimates take is kept to a part, so that a whole one comes, if later; if one can."""
        cost = self._forecast(QUICK) if self._quick_seconds is None else self._quick_seconds
        kept = QUICKLY * self._budget.part("curvature") - self._spent_quickly
        most = kept if self._whole_forecast() <= self._budget.remaining("curvature") else math.inf
        return not self._together.active and self._budget.due("curvature", cost, self._estimated_at, most)

    def _whole_forecast(self) -> float:
        """The cost of a quick one is no forecast for a whole one."""
        return self._forecast(WHOLE) if self._whole_seconds is None else self._whole_seconds

    def estimated(self, whole: bool, seconds: float, products: int) -> None:
        """What the estimate just made cost."""
        self._budget.cost_of("curvature", seconds)
        if self._product_seconds is not None and products:
            self._product_seconds = min(self._product_seconds, seconds / products)
        self._estimated_at = self._planned_at
        if whole:
            self._whole_seconds, self._whole_at = seconds, self._estimated_at
        else:
            self._quick_seconds, self._spent_quickly = seconds, self._spent_quickly + seconds

    def _forecast(self, cost: tuple[float, float]) -> float:
        products, seconds = cost
        product = PRODUCT * self._gradient_seconds() if self._product_seconds is None else self._product_seconds
        return products * product + seconds * self._weights

    def _gradient_seconds(self) -> float:
        """At most: an update may wait for data or a validation, of which a measurement with its forward knows."""
        measured = self._budget.latest["measured"]
        return min(self._budget.update_seconds, GRADIENT * measured if measured else math.inf)

    def _first_curvature(self, step: int) -> bool:
        """Within the first few updates, unless even a quick one would break the promise of the budget by itself."""
        if self.curvature_every is not None or self._together.active:
            return True
        if self._affords_first():
            return True
        if step - self.first > 3:  # the first updates may be slow for reasons of their own
            self._stretched()
        return False

    def _affords_first(self) -> bool:
        """A first, quick estimate: out of the floor, or by now."""
        cost = self._forecast(QUICK)
        return cost <= FIRST_ESTIMATE * self._budget.slowdown or self._budget.affords("curvature", cost)

    def whole_estimate(self) -> bool | Callable[[float], bool | None]:
        """Whether an estimate that is due is a whole one; the first time what a product then takes decides."""
        if self.curvature_every is not None or self._together.active:
            return True
        if self._product_seconds is None:
            return self._decide
        return self._affords_whole()

    def _decide(self, product_seconds: float) -> bool | None:
        """The first estimate: a whole one, a quick one, or none yet. A process' first product may take twenty times as
        long as any other: what was refused for it is asked once more, if another as long is affordable."""
        self._product_seconds = product_seconds
        if self._affords_whole():
            return True
        if self._affords_first():
            return False
        if not self._asked_again and self._budget.affords("curvature", product_seconds):
            self._asked_again, self._product_seconds = True, None
        else:
            self._stretched()
        return None

    def at_most(self) -> float:
        """Seconds that an estimate may take, if it is not a whole one. The first one's products are not known: it ends
        with its part of what is left, converged or not, as its residual tells, so that layers are measured too until
        more is earned. After five products the largest value was 0 to 16 % low on three networks."""
        if self.curvature_every is not None or self._together.active or self.last_curvature is not None:
            return math.inf
        each, weight = ALWAYS
        return self._budget.first_part("curvature", each + weight * self._weights)

    def wants_curvature(self, step: int) -> bool:
        if self.curvature_every is not None:
            return step % self.curvature_every == 0
        age, last = step - self.first + 1, self.last_curvature or 0
        return step - last >= max(1, min(age // 2, WIDEST_GAP))

    def _stretched(self) -> None:
        message = (
            f"measuring has taken {self._budget.total:.1f} s, of the {self._budget.promise:.1f} s that it may take by "
            f"now: the rest is kept for later, so measurements are spaced wider than every={self.every}, or put off"
        )
        self._tell_once("budget", message)
