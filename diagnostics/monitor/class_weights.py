"""Weights of classes in a loss, beside how often these classes are the target."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions

MOST_CLASSES, MOST_TARGETS = 64, 4096  # of a batch: what is compared one by one
_BINARY = {F.binary_cross_entropy, F.binary_cross_entropy_with_logits}
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


class Weighed:
    """Losses of single examples that are weighed by hand: `raw * weight[labels]`, or with `weight` of their shape."""

    def __init__(self) -> None:
        self._labels = WeakTensorKeyDictionary()  # of each such loss

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> list[Counted]:
        """After a call."""
        if func in functions.LABELLED:
            return self._given(func, args, kwargs, out)
        if func not in functions.GATING or len(args) != 2:
            return []
        pairs = [(self._labels[a], b) for a, b in (args, args[::-1]) if isinstance(a, Tensor) and a in self._labels]
        return [each for labels, weight in pairs if (each := _of_each(labels, weight)) is not None]

    def _given(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> list[Counted]:
        labels = functions.argument(args, kwargs, 1, "target")
        if not isinstance(labels, Tensor) or not isinstance(out, Tensor):
            return []
        if out.shape == labels.shape and out.dim():
            self._labels[out] = labels
        weight = functions.argument(args, kwargs, 2, "weight") if func in _BINARY else None
        found = _of_each(labels, weight)
        return [] if found is None else [found]


def _of_each(labels: Tensor, weight: Any) -> Counted | None:
    """Where each class has one weight; a class that is not there has 0."""
    if not isinstance(weight, Tensor) or weight.requires_grad or weight.shape != labels.shape or weight.numel() < 2:
        return None
    every = 1 + labels.numel() // MOST_TARGETS
    labels, weight = labels.detach().reshape(-1)[::every], weight.reshape(-1)[::every].float()
    of_class = labels[:, None] == torch.arange(MOST_CLASSES, device=labels.device)
    most = torch.where(of_class, weight[:, None], -torch.inf).amax(0)
    least = torch.where(of_class, weight[:, None], torch.inf).amin(0)
    counts = of_class.float().sum(0)
    single = ((most == least) | (counts == 0)).all() & (counts.sum() == len(labels))
    return torch.where(single & (counts > 0), most, 0.0), counts


class ClassWeights:
    """Of all updates that were looked at, as long as the weights are the same."""

    def __init__(self) -> None:
        self._weights: list[float] = []
        self._counts: list[float] = []

    def told(self, calls: Iterable[Counted]) -> list[list[float]]:
        """Weights, those of the last call, and targets of each class so far; empty where there are none."""
        for weights, counts in ((each.tolist(), some.tolist()) for each, some in calls):
            classes = max((c + 1 for c, count in enumerate(counts) if count or weights[c]), default=0)
            weights, counts = weights[:classes], counts[:classes]
            if weights != self._weights:
                self._weights, self._counts = weights, [0.0] * len(weights)
            self._counts = [before + more for before, more in zip(self._counts, counts, strict=True)]
        return [self._weights, self._counts] if self._weights else []
