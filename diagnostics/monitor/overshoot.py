"""Did the update go past the minimum along itself? r = -u'Hu / (2 g'u), from two losses of the same batch.

With L0 before and L1 after the update u, r = -(L1 - L0 - g'u) / (g'u): 1/2 at the minimum along u, 1 at equal loss.
Only as good as both losses are losses of the same function: same batch, same dropout masks, and the closure the loss
that was trained on, which is checked at the first measured update and then trusted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.updates import Update

AGREE = 1e-4  # relative difference up to which the closure's loss at the old weights is the loss of the step
ROUNDING = {False: 1.2e-7, True: 4e-3}  # of a loss in float32, and in half precision or under autocast
MARGIN = 20.0  # roundings by which g'u must exceed them


class Overshoot:
    def __init__(self) -> None:
        self.trusted: bool | None = None

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
        if update.slope is None or not comparable or passes not in (0.0, 1.0) or self.trusted is False:
            return float("nan")
        if not isinstance(after, Tensor) or after.numel() != 1:
            return float("nan")
        before = torch.as_tensor(loss, dtype=torch.float64).to(after.device)
        if self.trusted is None:
            old = stats.foreach._foreach_sub([p.detach() for p in parameters], update.before)
            replayed = torch.as_tensor(again(old), dtype=torch.float64)
            self.trusted = bool((replayed - before).abs() <= AGREE * before.abs())  # read once in a run
            if not self.trusted:
                return float("nan")
        return _ratio(update, before, after.detach().double().reshape(()), coarse or after.dtype.itemsize < 4)


def _ratio(update: Update, before: Tensor, after: Tensor, coarse: bool) -> Tensor:
    slope = update.slope
    assert slope is not None
    received, whole = update.values["grad_norm"], update.values.get("grad_norm_unclipped")
    if whole is not None:  # clipping shortened the gradient; the loss has the whole slope
        slope = slope * (whole / received).to(slope)
    ratio = -(after - before - slope) / slope
    return torch.where(slope.abs() > MARGIN * ROUNDING[coarse] * before.abs(), ratio, torch.nan)
