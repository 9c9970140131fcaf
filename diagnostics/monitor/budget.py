"""What measuring may cost, and when the next measurement is due.

The promise is over the whole run: all measuring together costs at most max(5 s, budget x unwatched time). The five
seconds are those of a machine of one's own: where training waits for a processor that other work has, all takes longer
by the clock, and counts as what it takes alone. Until they are earned, but for the first half second of each kind, what
is left of them is spent evenly over the logarithm of the time, so that a run of any length, on a machine however busy,
is measured from its first updates on and still in its last half. What every update costs is set aside first, up to
half: where recording alone costs more than that (updates of a fraction of a millisecond), curvature goes on with the
other half.
"""

import math
import time
from typing import Any

FLOOR_SECONDS = 5.0
AT_ONCE = 0.5  # seconds of each kind: a run of a second is measured as densely as it was asked to be
FIRST_ESTIMATE = 4.1  # seconds of them that a first, quick, curvature estimate may be expected to take
MOMENT = 1e-6  # seconds: none may have passed, by a clock that counts what other threads took
MOST_SLOWDOWN = 10.0  # by other work: on a machine that hardly runs at all, the five seconds must end some time
CLOSING_SECONDS = 0.2  # kept for the last diagnosis
SHARES = {"measured": 0.5, "curvature": 0.5}  # of what is left, so that neither starves the other


class Budget:
    """Seconds spent so far by kind of measurement, and the latest cost of one of each.

    `always`: at every update. `writing`, `diagnosing`: in other threads, which take the interpreter from training.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.slowdown = 1.0  # seconds by the clock in which is done what takes one where no other work has its turn
        self._waited_before = waited()
        self.spent = {"measured": 0.0, "curvature": 0.0, "always": 0.0, "writing": 0.0, "diagnosing": 0.0}
        self._lost = 0.0  # seconds of it that other work took
        self.latest = {"measured": 0.0, "curvature": 0.0}
        self._before: dict[str, float] = {}  # what the last of each kind cost
        self.inside = 0.0  # charged further inside of what is being charged
        self._began = time.perf_counter()
        self._last_update = 0.0
        self._fixed = 0.0  # seconds spent otherwise than on measurements, by the last update
        self._once = 0.0  # of them, in the costliest update: the first, in which all is done for the first time
        self.update_seconds = float("inf")  # of the fastest update so far, unwatched

    @property
    def total(self) -> float:
        return sum(self.spent.values())

    @property
    def floor(self) -> float:
        """What has been spent, and what is left of the five seconds: by the clock, at the pace of now."""
        return self.total + max(0.0, FLOOR_SECONDS - self.total + self._lost) * self.slowdown

    @property
    def unwatched(self) -> float:
        return max(0.0, time.perf_counter() - self._began - self.total)

    @property
    def promise(self) -> float:
        """Seconds that may have been spent by now."""
        return max(self.floor, self.share * self.unwatched)

    def _left(self) -> float:
        """Seconds of the promise for measurements: less what every update has cost, and will while the floor lasts."""
        seconds = self.unwatched
        fixed = self.total - self._measuring()
        lasts = max(1.0, self.floor / self.share / seconds) if self.share and seconds else 1.0
        return self._left_by(self._once + (fixed - self._once) * lasts)

    def _left_by(self, fixed: float) -> float:
        promise = self.promise - CLOSING_SECONDS
        return promise - min(promise / 2, fixed)

    def updated(self) -> None:
        """Called once an update: how long do they take? Other threads' seconds come in lumps and would hide it."""
        ours = self._measuring() + self.spent["always"]
        fixed = self.total - self._measuring()
        self._once, self._fixed = max(self._once, fixed - self._fixed), fixed
        now = time.perf_counter() - self._began - ours
        self.update_seconds, self._last_update = min(self.update_seconds, now - self._last_update), now

    def part(self, kind: str) -> float:
        """Seconds that this kind of measurement may have taken by now, or by the time that the floor is earned."""
        return SHARES[kind] * self._left()

    def first_part(self, kind: str, fixed: float) -> float:
        """The same of a first measurement, when nobody knows what updates cost on average: `fixed` seconds are expected
        of each."""
        updates = self.floor / max(self.share, 1e-3) / max(self.update_seconds, MOMENT)
        return SHARES[kind] * self._left_by(self._once + fixed * updates)

    def remaining(self, kind: str) -> float:
        return min(self.part(kind) - self.spent[kind], self._left() - self._measuring())

    def affords(self, kind: str, cost: float | None = None) -> bool:
        """Whether one more measurement of this kind, at its latest cost, stays within its share and the promise."""
        return (self.latest[kind] if cost is None else cost) <= self.remaining(kind)

    def due(self, kind: str, cost: float, since: float, most: float = math.inf) -> bool:
        """Whether it is time for a measurement that costs so much of what remains, or of `most`, the last of its kind
        having been made when so many unwatched seconds had passed."""
        remaining = min(self.remaining(kind), most)
        if cost > remaining:
            return False
        now = max(self.unwatched, MOMENT)
        if now * self.share >= self.floor or self.spent[kind] + cost <= AT_ONCE * self.slowdown:
            return True
        gone = math.log(max(now / max(since, self.update_seconds, MOMENT), 1.0))
        return gone * remaining >= math.log(self.floor / max(self.share, 1e-3) / now) * cost

    def _measuring(self) -> float:
        return sum(self.spent[kind] for kind in SHARES)

    def charge(self, kind: str) -> "Charge":
        """Charge the time inside to a kind; what is charged further inside is not charged twice."""
        return Charge(self, kind)

    def add(self, kind: str, seconds: float) -> None:
        self.spent[kind] += seconds
        self._lost += seconds * (1 - 1 / self.slowdown)

    def cost_of(self, kind: str, seconds: float) -> None:
        """Note what one whole measurement cost: the forecast for the next. Of measured updates, which are all alike, it
        is the lesser of the last two: what held one of them up, on a busy machine, is over."""
        before, self._before[kind] = self._before.get(kind, math.inf), seconds
        self.latest[kind] = min(seconds, before) if kind == "measured" else seconds
        passed = time.perf_counter() - self._began
        undisturbed = passed - (waited() - self._waited_before)
        self.slowdown = min(max(1.0, passed / max(undisturbed, MOMENT)), MOST_SLOWDOWN)


class Charge:
    """A context manager of a class of its own: several are entered at every update, and generators cost twice that."""

    __slots__ = ("_began", "_budget", "_kind", "_outside")

    def __init__(self, budget: Budget, kind: str) -> None:
        self._budget, self._kind = budget, kind

    def __enter__(self) -> None:
        self._outside, self._budget.inside = self._budget.inside, 0.0
        self._began = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        seconds = time.perf_counter() - self._began
        self._budget.add(self._kind, seconds - self._budget.inside)
        self._budget.inside = self._outside + seconds


def waited() -> float:
    """Seconds that this thread could have run and had no processor; 0 where the system does not tell (Linux does)."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
