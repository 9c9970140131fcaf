"""Weights of classes in a loss, beside how often these classes are the target."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics.monitor import functions

MOST_CLASSES, MOST_TARGETS = 64, 4096  # of a batch: what is compared one by one
WEIGHTED = {F.cross_entropy, F.nll_loss}
Counted = tuple[Tensor, Tensor]  # weights (C,), and the targets of each class (C,)


def counted(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Counted | None:
    """Of a call of a loss with weights; nothing waits for a device."""
    target = functions.argument(args, kwargs, 1, "target")
    if not isinstance(target, Tensor):
        return None
    if func is F.binary_cross_entropy_with_logits:
        weight = functions.argument(args, kwargs, 6, "pos_weight")
        if not isinstance(weight, Tensor) or weight.numel() != 1:
            return None
        ones = target.detach().float().sum()
        weights = torch.cat([torch.ones_like(weight.reshape(1)), weight.reshape(1)])
        return weights.detach().float(), torch.stack([target.numel() - ones, ones])
    weight = functions.argument(args, kwargs, 2, "weight") if func in WEIGHTED else None
    if not isinstance(weight, Tensor) or target.is_floating_point() or not 1 < weight.numel() <= MOST_CLASSES:
        return None
    ignored = kwargs.get("ignore_index", -100)
    labels = target.detach().reshape(-1)
    labels = labels[:: 1 + len(labels) // MOST_TARGETS, None]  # all over an image, which has its sky at the top
    of_class = labels == torch.arange(len(weight), device=labels.device)
    return weight.detach().float(), (of_class & (labels != ignored)).float().sum(0)


class ClassWeights:
    """Of all updates that were looked at, as long as the weights are the same."""

    def __init__(self) -> None:
        self._weights: list[float] = []
        self._counts: list[float] = []

    def told(self, calls: Iterable[Counted]) -> list[list[float]]:
        """Weights, those of the last call, and targets of each class so far; empty where there are none."""
        for weights, counts in ((each.tolist(), some.tolist()) for each, some in calls):
            if weights != self._weights:
                self._weights, self._counts = weights, [0.0] * len(weights)
            self._counts = [before + more for before, more in zip(self._counts, counts, strict=True)]
        return [self._weights, self._counts] if self._weights else []
