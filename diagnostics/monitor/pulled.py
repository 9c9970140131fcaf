"""Pairs that a loss pulls together, and all others: which are the farther apart?

Weights that are not trained yet keep what is alike near. Where a loss of labelled pairs pulls together what is farther
apart than the others, its labels may be the other way round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diagnostics.monitor import functions
from diagnostics.monitor.partners import row_by_row

FEWEST = 4  # pairs of each kind: of fewer no spread is known
ROUNDING = 1e-3  # of the largest pull, by which one may miss the line through all
MOST = 8  # differences that are asked of: a loss that compares all with all has more


class Apart(NamedTuple):
    """Mean distance of the pairs that are pulled together, that of the others, and the standard error between them."""

    pulled: float
    others: float
    error: float


class Rows:
    """Whether two matrices are compared row by row in a forward."""

    def __init__(self) -> None:
        self.compared = False

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        self.compared = self.compared or _compares(func, args)


class Pulled:
    """Asked at ever fewer of the measured updates, if at the first one the others are nearer."""

    def __init__(self) -> None:
        self.found: list[Apart] = []
        self._looks, self._over = 0, False

    def due(self, rows: Rows) -> bool:
        """At this measured update. `rows`: of the first one."""
        self._looks += 1
        self._over = self._over or not (self.found or rows.compared)
        return not self._over and self._looks.bit_count() == 1

    def meet(self, found: list[Apart]) -> None:
        self.found += found if len(found) == 1 else []
        self._over = not self.found or self.found[0].pulled <= self.found[0].others


class Distances(TorchFunctionMode):
    """Of the rows of two matrices: as a function gives them, or as the length of a difference."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if _compares(func, args):
            self._seen.append(out)
        return out

    def apart(self, loss: Any) -> list[Apart]:
        seen = self._seen[:MOST]
        if not seen or not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            return []
        gradients = torch.autograd.grad(loss.sum(), seen, allow_unused=True)
        found = [_apart(x.detach(), g) for x, g in zip(seen, gradients, strict=True) if g is not None]
        return [each for each in found if each is not None]


def _compares(func: Callable, args: tuple) -> bool:
    """Rows that are learned both, as far as there is a graph to tell: not answers with targets, nor one number with
    another, whose difference has a sign."""
    if not (func in functions.DISTANCE or func in functions.SUBTRACTING) or len(args) < 2:
        return False
    if not row_by_row(*args[:2]):
        return False
    return all(each.requires_grad for each in args[:2]) or not torch.is_grad_enabled()


def _apart(x: Tensor, gradient: Tensor) -> Apart | None:
    """Of distances, or of differences: the pull is the derivative by the distance. Two labels make two pulls, each on
    a line over the distance, as of a square or a margin; what has no pull lies beyond a margin. Pairs that were chosen
    for being hard, or are told how near they are to be, have none of this."""
    x, gradient = x.double(), gradient.double()
    if x.dim() == 2 and x.shape[1] > 1:
        distance = x.norm(dim=1)
        pull = (gradient * x).sum(1) / distance.clamp_min(torch.finfo(x.dtype).tiny)
    else:
        distance, pull = x.reshape(-1), gradient.reshape(-1)
    together, away, free = pull > 0, pull < 0, pull == 0
    if min(int(together.sum()), int(away.sum())) < FEWEST:
        return None
    if free.any() and bool(distance[free].min() < distance[away].max()):
        return None
    if not all(_on_a_line(distance[each], pull[each]) for each in (together, away)):
        return None
    parts = distance[together], distance[~together]
    error = sum(each.var() / len(each) for each in parts) ** 0.5
    return Apart(float(parts[0].mean()), float(parts[1].mean()), float(error))


def _on_a_line(x: Tensor, y: Tensor) -> bool:
    x0, y0 = x - x.mean(), y - y.mean()
    slope = (x0 * y0).sum() / x0.square().sum().clamp_min(torch.finfo(x.dtype).tiny)
    return bool((y0 - slope * x0).abs().max() <= ROUNDING * y.abs().max())
