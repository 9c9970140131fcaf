"""When a basis has grown enough: what is wanted of a spectrum, and products until it is there."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diagnostics.curvature.lanczos import Krylov, Ritz

# Dimensions up to which the whole space is searched: copies and what a start has little of cannot be missed then, and
# every figure is exact. An estimate takes about as many products anyway.
FEW = 24
SPARSE = 32  # products tested for convergence each; then every second one, from twice as many every third, ...


@dataclass(frozen=True)
class Target:
    """What is wanted of a spectrum, and how exactly."""

    largest: int = 5
    smallest: bool = True
    tolerance: float = 1e-2  # of an eigenvalue, relative to its size
    smallest_tolerance: float | None = None  # the same for the smallest, where another is wanted
    floor: float = 1e-2  # sizes below this share of the largest count as this share
    max_products: int = 150
    hidden: float = 0.3  # accepted chance that the start hides one that is wanted (`runs.hidden`); 1: whatever it is

    @property
    def least(self) -> int:
        """Products before which it cannot be met."""
        return self.largest + self.smallest

    def wanted(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the wanted ones among all Ritz values, descending, and how far each may be off."""
        chosen = np.array([*range(min(self.largest, len(values))), *[len(values) - 1] * self.smallest])
        allowed = np.full(len(chosen), self.tolerance)
        if self.smallest:
            allowed[-1] = self.smallest_tolerance or self.tolerance
        return chosen, allowed * np.maximum(np.abs(values[chosen]), self.floor * np.abs(values).max())

    def met(self, ritz: Ritz, dimension: int) -> bool:
        if len(ritz.values) < min(self.least, dimension):
            return False
        chosen, allowed = self.wanted(ritz.values)
        return bool((ritz.errors[chosen] <= allowed).all())


def solve(
    krylov: Krylov,
    target: Target,
    fresh: Callable[[], Tensor],
    enough: Callable[[Ritz], bool] = lambda ritz: True,
    until: float = math.inf,
    aimed: bool = False,
) -> Ritz:
    """Multiply until the target is met and `enough` says so too, or the products are spent, or it is `until` o'clock.

    `fresh` makes random vectors, needed when the basis becomes invariant before everything wanted is in it. `aimed`:
    each time the residual of the largest Ritz pair, not the newest vector.
    """
    limit = krylov.products + target.max_products
    while True:
        if krylov.exhausted and not krylov.extend(fresh()):
            return krylov.ritz()  # the whole space
        if aimed:
            krylov.aim()
        krylov.step()
        if krylov.done < min(target.least, krylov.dimension):
            continue
        spent = krylov.products >= limit or time.perf_counter() > until
        if krylov.dimension <= FEW and krylov.has_room and not krylov.complete and not spent:
            continue
        # A test costs O(m^3): beside the product of a small network, that is dear.
        if not spent and krylov.done % (1 + krylov.done // SPARSE):
            continue
        ritz = krylov.ritz()
        if spent or (target.met(ritz, krylov.dimension) and enough(ritz)):
            return ritz
