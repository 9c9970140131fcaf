"""Running sums along the batch, as a partial likelihood has them: do answers go with their places in it?

Source: Cox 1975, "Partial likelihood", whose sums are over all that are still at risk, in the order of their times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diagnostics.monitor import functions
from diagnostics.monitor.likeness import FEWEST


class Running:
    """Of one forward."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], is_answer: Callable[[Tensor], bool]) -> None:
        """A call in the loss. `is_answer`: whether something learned went into a tensor."""
        x = args[0] if func in functions.RUNNING and args else None
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim() or len(x) < FEWEST:
            return
        along = functions.argument(args, kwargs, 1, "dim")
        if x.numel() == len(x) and isinstance(along, int) and along % x.dim() == 0 and is_answer(x):
            self._seen.append(_ordered(x.detach().flatten().float()))

    def columns(self) -> dict[str, Tensor]:
        """Of `scalars`."""
        if not self._seen:
            return {}
        along, next_to = self._seen[0]
        return {"running_order": along, "running_likeness": next_to}


def _ordered(x: Tensor) -> Tensor:
    """Rank correlation of numbers with their places, and of each with the next."""
    places = torch.arange(len(x), dtype=torch.float32, device=x.device)
    ranks = x.argsort().argsort().float()
    pairs = torch.stack([ranks, places]), torch.stack([ranks[1:], ranks[:-1]])
    return torch.stack([torch.corrcoef(each)[0, 1] for each in pairs])
