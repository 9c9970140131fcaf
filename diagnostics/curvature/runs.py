"""Runs of the eigen-solver as one estimate needs them: memory, start vectors cold and warm, what a basis tells."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from diagnostics.curvature.distributed import Ranks
from diagnostics.curvature.lanczos import Krylov, Ritz
from diagnostics.curvature.layout import Layout, Matvec
from diagnostics.curvature.quadrature import Chain, missed
from diagnostics.curvature.solve import Target, solve

ROWS = 96  # of a basis, if memory allows
# Of a warm start's length: what a new direction is found by. Measured on two networks, every 2 and 10 updates: as many
# products with any share from 0.3 to 0.97, but the more is random, the sooner a miss is unlikely.
RANDOM_SHARE = 0.7
# A run that must not miss any goes on while an eigenvalue that belongs in the list, by more than so many tolerances,
# may be hidden, for at most half as many products again. Measured on seven states of two networks, 34 cold runs: with a
# chance of 0.3 a listed value was off by more than the tolerance in 2, with 0.5 in 5, by residuals alone in 11.
HIDDEN_BEYOND, HIDDEN_PRODUCTS = 3.0, 1.5
TWICE_MISSED = 0.5  # a run for the top alone goes on while an eigenvalue twice as large is this likely missed
# ... and until its error estimate is this share of the tolerance: the gap in it is to a value that is still too low.
# Measured on six networks: off by more than the tolerance in 3 of 178 warm and 9 of 184 cold runs, without in 6 and 27.
GAP_DOUBT = 0.5
# A search from what is known has no random start that would bound what it missed: it ends when this share of its
# products agree in turn, the more the longer it took. With two, 59 of 504 estimates of networks with rare tokens were
# off by more than a per cent, with a third 43.
AGREEING = 1 / 3
# Before a search for copies, so many products at most complete a basis if more than this share of it has converged.
CLOSING, CLOSED = 4, 0.75
COPIES_MISSED = 0.05  # accepted chance of not finding a copy of one of the listed eigenvalues ...
COPIES_PRODUCTS = 16  # ... and what a search may cost; with 12 copies were missed from 6 starts of 12, with 16 from 1


@dataclass
class Solver:
    """Where vectors live and how random ones are made; counts what was spent."""

    layout: Layout
    ranks: Ranks | None
    memory_bytes: int | None
    seed: int
    until: float = math.inf  # when a search for the largest stops, by time.perf_counter
    exact: bool = True  # but for rounding, products are those of one symmetric matrix
    spent: list[Krylov] = field(default_factory=list)

    def __post_init__(self) -> None:
        shard = self.ranks.rank if self.ranks and self.ranks.sharded else 0
        self._generator = torch.Generator(self.layout.device).manual_seed(1000 * self.seed + shard)

    @property
    def products(self) -> int:
        return sum(krylov.products for krylov in self.spent)

    def basis(self, matvec: Matvec, wanted: int = 1) -> Krylov:
        """At least as many rows as a thick restart needs to keep all that is wanted."""
        like = self.layout.empty()
        available = free_memory(self.layout.device) // 4 if self.memory_bytes is None else self.memory_bytes
        rows = available // max(1, like.numel() * like.element_size())
        rows = min(ROWS, max(10 + 2 * wanted, rows))
        krylov = Krylov(matvec, like, rows, self.ranks.total if self.ranks else None, self.exact)
        self.spent.append(krylov)
        return krylov

    def random(self) -> Tensor:
        """Signs of slightly random size, E[z z'] = 1: plain signs are exactly orthogonal to e_i - e_j half the time."""
        size = torch.rand(
            self.layout.dimension, generator=self._generator, dtype=self.layout.dtype, device=self.layout.device
        )
        sign = torch.randint(0, 2, size.shape, generator=self._generator, device=size.device)
        return (size + 0.5).sqrt_() * (2 * sign - 1)

    def fresh(self) -> Tensor:
        return torch.randn(
            self.layout.dimension, generator=self._generator, dtype=self.layout.dtype, device=self.layout.device
        )

    def warm(self, *known: Tensor) -> Tensor:
        """The sum of known unit vectors plus a random part of RANDOM_SHARE of its length."""
        start, noise = torch.stack(known).sum(0), self.fresh()
        length = self.norm(start)
        return start.add_(noise, alpha=RANDOM_SHARE / (1 - RANDOM_SHARE**2) ** 0.5 * length / self.norm(noise))

    def run(self, krylov: Krylov, target: Target) -> Ritz:
        """Until residuals say so, and it is unlikely enough that a value of the list is hidden."""
        met = 0

        def enough(ritz: Ritz) -> bool:
            nonlocal met
            met = met or krylov.done
            if target.hidden >= 1 or krylov.restarted or krylov.done >= HIDDEN_PRODUCTS * met:
                return True
            return hidden(krylov.chain, krylov.dimension, ritz, target, HIDDEN_BEYOND) < target.hidden

        return solve(krylov, target, self.fresh, enough)

    def run_top(self, krylov: Krylov, tolerance: float, share: float) -> Ritz:
        """The largest eigenvalue, and little chance that a clearly larger one has been missed."""

        def enough(ritz: Ritz) -> bool:
            top = float(ritz.values[0])
            return missed(krylov.chain, top + abs(top), krylov.dimension, share) < TWICE_MISSED

        return solve(krylov, Target(1, False, GAP_DOUBT * tolerance, max_products=30), self.fresh, enough, self.until)

    def run_known(self, krylov: Krylov, tolerance: float) -> Ritz:
        """The largest eigenvalue from a basis that has its direction nearly, until enough products in turn agree."""
        first = last = -1  # of the products that do, as far as known

        def enough(ritz: Ritz) -> bool:
            nonlocal first, last
            first, last = first if last == krylov.done - 1 else krylov.done, krylov.done
            return last - first + 1 >= max(2, AGREEING * krylov.products)

        target = Target(1, False, GAP_DOUBT * tolerance, max_products=30)
        return solve(krylov, target, self.fresh, enough, self.until, aimed=True)

    def find_copies(self, krylov: Krylov, target: Target, *known: Tensor) -> bool:
        """Restarts in the complement of the basis, until one finds nothing that belongs among the k largest: random
        ones, or warm ones from `known` vectors.

        A single start sees one copy of a repeated eigenvalue, whatever it costs. True if there were more, of any
        that had converged.
        """
        self._close(krylov, target.tolerance)
        before, rounds = krylov.ritz(), 0
        while rounds < target.largest and self._one_more(krylov, target, *known):
            rounds += 1
        self._complete(krylov)
        return _repeated(before, krylov.ritz(), target.tolerance)

    def _close(self, krylov: Krylov, tolerance: float) -> None:
        """A few products where most of the spectrum has converged, so that the basis is invariant: what another start
        has no part in, the vector that waits, may be one of the few large eigenvectors that are left."""
        for _ in range(CLOSING):
            ritz = krylov.ritz()
            if ritz.residuals.max() <= 1e-6 * krylov.scale or ritz.converged(tolerance).mean() <= CLOSED:
                return
            krylov.step()

    def _complete(self, krylov: Krylov) -> None:
        """The whole space, where little of it is left."""
        if not krylov.has_room or krylov.dimension - krylov.done > max(CLOSING, krylov.done // 8):
            return
        while not krylov.complete and not (krylov.exhausted and not krylov.extend(self.fresh())):
            krylov.step()

    def _one_more(self, krylov: Krylov, target: Target, *known: Tensor) -> bool:
        before, share = krylov.ritz().values[: target.largest], RANDOM_SHARE if known else 1.0
        if not krylov.extend(self.warm(*known) if known else self.fresh()):
            return False
        last, search = float(before[-1]), replace(target, max_products=COPIES_PRODUCTS)
        solve(krylov, search, self.fresh, lambda _: missed(krylov.chain, last, krylov.dimension, share) < COPIES_MISSED)
        after = krylov.ritz().values[: len(before)]
        return bool((after > before + target.tolerance * np.abs(before)).any())

    def norm(self, v: Tensor) -> float:
        square = torch.dot(v, v)
        return float(self.ranks.total(square) if self.ranks else square) ** 0.5


def _repeated(before: Ritz, after: Ritz, tolerance: float) -> bool:
    """Whether more pairs have converged to a value than had before another start: to one of a single start, if at all,
    only where it is repeated."""
    old, new = before.values[before.converged(tolerance)], after.values[after.converged(tolerance)]

    def near(x: float, values: np.ndarray) -> int:
        return int((np.abs(values - x) <= tolerance * abs(x)).sum())

    return any(near(x, new) > near(x, old) for x in old[old != 0])


def missed_above(krylov: Krylov, top: float, tolerance: float, share: float) -> float:
    """Chance that the chain hides an eigenvalue larger than `top` by more than the tolerance."""
    return missed(krylov.chain, top + tolerance * max(abs(top), 1e-30), krylov.dimension, share)


def hidden(chain: Chain, dimension: int, ritz: Ritz, target: Target, beyond: float = 1.0) -> float:
    """Chance that a random start's chain hides an eigenvalue above one of the largest of `target`, or below the
    smallest, by more than `beyond` tolerances (between two that are nearer: in the middle)."""
    chosen, allowed = target.wanted(ritz.values)
    listed = ritz.values[chosen]
    places = listed + beyond * allowed
    places[1:] = np.minimum(places[1:], (listed[1:] + listed[:-1]) / 2)
    if target.smallest:
        places[-1] = listed[-1] - beyond * allowed[-1]
    return max(missed(chain, place, dimension) for place in places)


def quotient(krylov: Krylov, vector: Tensor) -> float:
    """v'Hv / v'v, at the cost of one product unless the basis holds v already."""
    krylov.hold(vector)
    c = krylov.project(vector)
    square = float(c @ c)
    return float(c @ krylov.projected[: krylov.done, : krylov.done] @ c) / square if square > 0 else math.nan


def flat_share(krylov: Krylov, gradient: Tensor) -> float:
    """Share of the squared gradient along curvature below a hundredth of the largest, in size.

    The basis gets the gradient and one product of it: Gauss quadrature of the gradient's spectral measure, with the
    directions of large curvature known already. On two networks, 32 estimates, the share is off by 0.02 and 0.17 on
    average from that after twelve products; with a second product by as much (0.02 and 0.15).
    """
    krylov.hold(gradient)
    ritz, c = krylov.ritz(), krylov.project(gradient)
    total = float(c @ c)
    along = (c @ ritz.coefficients) ** 2
    flat = np.abs(ritz.values) < (1 - 1e-4) * np.abs(ritz.values).max() / 100  # rounding does not make a tie flat
    return float(along[flat].sum()) / total if total > 0 else math.nan


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(kilobytes)
    except (OSError, StopIteration):  # not Linux: a size that fits any machine that trains networks
        return 4 * 2**30
