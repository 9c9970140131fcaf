"""Did the update go past the minimum along itself? r = -u'Hu / (2 g'u), from two losses of the same batch.

With L0 before and L1 after the update u, r = -(L1 - L0 - g'u) / (g'u): 1/2 at the minimum along u, 1 at equal loss.
Only as good as both losses are losses of the same function: same batch, same dropout masks, and the closure the loss
that was trained on, which is checked at the first measured update and from time to time again; and as the weights are
those that the update left: a clamp or another optimizer may move them before anybody looks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.update import Update

AGREE = 1e-4  # relative difference up to which the closure's loss at the old weights is the loss of the step
SELDOM = 64  # measured updates between two checks of the closure, after the 1st, 2nd, 4th, ...
ROUNDING = {False: 1.2e-7, True: 4e-3}  # of a loss in float32, and in half precision or under autocast
MARGIN = 20.0  # roundings by which g'u must exceed them


class Overshoot:
    def __init__(self) -> None:
        self._checked: Any = False  # like the next on the device, so that nothing waits for it
        self._trusted: Any = True  # once a check fails, later agreement is chance
        self._seen = 0

    def ratio(
        self,
        update: Update,
        loss: Any,
        after: Any,
        comparable: bool,
        again: Callable[[Sequence[Tensor]], Any],
        parameters: Sequence[Tensor],
        coarse: bool,
    ) -> Any:
        """`after`: the closure's loss at the new weights; `again(weights)`: at others. NaN where it says nothing."""
        passes = update.values.get("micro_batches")
        if update.downhill is None or update.left is None or not comparable:
            return float("nan")
        if passes not in (0.0, 1.0) or not isinstance(after, Tensor) or after.numel() != 1:
            return float("nan")
        before = torch.as_tensor(loss, dtype=torch.float64).to(after.device)
        untouched = update.left.untouched(parameters).to(after.device)
        if self._check_due():
            old = stats.foreach._foreach_sub([p.detach() for p in parameters], update.change)
            replayed = torch.as_tensor(again(old), dtype=torch.float64).to(after.device)
            agrees = (replayed - before).abs() <= AGREE * before.abs()
            self._checked, self._trusted = self._checked | untouched, self._trusted & (agrees | ~untouched)
        ratio = _ratio(update.downhill, before, after.detach().double().reshape(()), coarse or after.dtype.itemsize < 4)
        return torch.where(untouched & self._checked & self._trusted, ratio, torch.nan)

    def _check_due(self) -> bool:
        self._seen += 1
        return self._seen % SELDOM == 0 or (self._seen < SELDOM and self._seen & (self._seen - 1) == 0)


def _ratio(slope: Tensor, before: Tensor, after: Tensor, coarse: bool) -> Tensor:
    ratio = -(after - before - slope) / slope
    return torch.where(slope.abs() > MARGIN * ROUNDING[coarse] * before.abs(), ratio, torch.nan)
