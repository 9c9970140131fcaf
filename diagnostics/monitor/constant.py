"""What a batch's loss would be if the model gave the same answer to everything: the best one for the targets of all
measured updates."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics import stats

SAME = 1e-3  # relative difference that rounding leaves between a comparison's value and the loss
_SIGNATURES = {
    function: inspect.signature(function)
    for function in (
        F.mse_loss,
        F.cross_entropy,
        F.nll_loss,
        F.binary_cross_entropy_with_logits,
        F.binary_cross_entropy,
    )
}


@dataclass(frozen=True)
class Comparison:
    """One mean of errors between outputs and targets."""

    value: Tensor
    targets: stats.Targets


def comparison(function: Callable, args: tuple, kwargs: dict[str, Any], value: Any) -> Comparison | None:
    """What a call compares, if it is a plain mean over outputs and targets of the same shape."""
    signature = _SIGNATURES.get(function)
    if signature is None or not isinstance(value, Tensor) or value.numel() != 1:
        return None
    call = signature.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    plain = given["reduction"] == "mean" and given.get("weight") is None and given.get("pos_weight") is None
    if not plain or not given["target"].numel():
        return None
    targets = _targets(function, given)
    return None if targets is None else Comparison(value.detach(), targets)


def _targets(function: Callable, given: dict[str, Any]) -> stats.Targets | None:
    output, target = given["input"], given["target"]
    if function in (F.cross_entropy, F.nll_loss):
        if target.is_floating_point():
            return None
        count = output.shape[min(1, output.dim() - 1)]
        return stats.classes(target, count, given["ignore_index"], given.get("label_smoothing", 0.0))
    if output.shape != target.shape or not target.is_floating_point():
        return None
    return stats.squared(target) if function is F.mse_loss else stats.bernoulli(target)


class Constant:
    """The targets so far.

    They must come from the data: targets that are the same in every batch whatever its inputs, as a discriminator's or
    the pairs of a contrastive loss, do not, and a loss that hovers where a constant answer would put it may be right.
    """

    def __init__(self) -> None:
        self._seen: stats.Targets | None = None
        self._first: tuple[stats.Targets, Tensor] | None = None  # of the first batch, and the sum of its inputs
        self._varied: tuple[Tensor, Tensor] | None = None  # whether the targets ever did, and the inputs

    def loss(self, comparisons: list[Comparison], loss: Any, x: Tensor | None) -> Tensor | None:
        """Of this batch under the best constant answer so far, if `loss` is one comparison and nothing else; `x`: what
        the first layer read."""
        if len(comparisons) != 1:
            return None
        value, targets = comparisons[0].value, comparisons[0].targets
        targets_vary, inputs_vary = self._add(targets, _sum(x, value))
        assert self._seen is not None
        loss = torch.as_tensor(loss, device=value.device)
        nothing_else = (value - loss).abs() <= SAME * loss.abs()
        return torch.where(nothing_else & (targets_vary | ~inputs_vary), targets.constant_loss(self._seen), torch.nan)

    def _add(self, targets: stats.Targets, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._seen is None or self._first is None or self._varied is None or not self._seen.like(targets):
            self._seen, self._first, self._varied = targets, (targets, x), (torch.zeros_like(x).bool(), x != x)
        else:
            (first, first_x), (targets_vary, inputs_vary) = self._first, self._varied
            self._seen = self._seen.merged(targets)
            other = (targets.seen.count == first.seen.count) & ~targets.equal(first)  # a last batch may be shorter
            self._varied = targets_vary | other, inputs_vary | (x != first_x)
        return self._varied


def _sum(x: Tensor | None, like: Tensor) -> Tensor:
    """NaN, which nothing equals, where the inputs are not seen."""
    if x is None or not x.numel():
        return torch.full((), torch.nan, device=like.device)
    return x.detach().sum(dtype=torch.float32)
