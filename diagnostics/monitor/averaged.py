"""What the loss would be if every example got the mean of the model's answers: no form of the loss need be known.

A loss that compares answers with targets of the data shows it where all answers are one: its gradient then differs from
example to example, by the targets alone, and by others in other batches. A game's, whose targets are the same in each
batch, a likelihood's or a score's, which has none, and one that is linear in the answers, as a policy's, say nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics.monitor import forwards
from diagnostics.monitor.answers import FEWEST, MOST

SELDOM = 2  # measured updates for each that is looked at: it takes two forwards
TRIES = 3  # of these, in turn, after which nothing is expected any more
DIFFERENT = 1e-3  # of a gradient's size: less is rounding
SOME = 64  # numbers of an answer, by which two batches' targets are compared
ALIKE = 0.9  # cosine of what the targets of two batches leave, from which they count as the same


class Averaged:
    """What is known so far is on the model's device, so that nothing waits for it."""

    def __init__(self) -> None:
        self._seen = self._failed = 0
        self._bends: Tensor | bool = False  # whether the gradient was seen to depend on the answers
        self._first: tuple[Tensor, Tensor] | None = None  # what the first batch's targets leave, and that batch
        self._targets_vary: Tensor | bool = False
        self._inputs_vary: Tensor | bool = False

    def due(self) -> bool:
        """At this measured update."""
        self._seen += 1
        return self._failed < TRIES and self._seen % SELDOM == 1

    def columns(
        self, model: nn.Module, closure: Callable[[], Any], states: forwards.RandomState | None, x: Tensor | None
    ) -> dict[str, Tensor]:
        """`x`: what the model is given."""
        if x is None or x.dim() == 0 or len(x) < FEWEST:  # as the last batch of an epoch
            return {}
        usual = _evaluated(model, closure, states, lambda y: y)
        mean = None if usual is None else _evaluated(model, closure, states, lambda y: _mean(y, x))
        if usual is None or mean is None:
            self._failed += 1
            return {}
        self._failed = 0
        apart = mean.gradient - mean.gradient.mean(0)
        differ = _clearly(usual.answers - usual.answers.mean(0), usual.answers)  # as they do at the start
        bends = differ & _clearly(usual.gradient - mean.gradient, usual.gradient, mean.gradient)
        self._bends = bends | self._bends
        told = _clearly(apart, usual.gradient, mean.gradient) & self._bends & self._is_of_data(apart, x)
        losses = {"answered_loss": usual.loss, "averaged_loss": mean.loss}
        return {name: torch.where(told, loss, torch.nan) for name, loss in losses.items()}

    def _is_of_data(self, apart: Tensor, x: Tensor) -> Tensor:
        apart, given = apart[:, :: 1 + apart.shape[1] // SOME], x.detach().sum().float()
        if self._first is None:
            self._first = apart, given
            return torch.zeros_like(given, dtype=torch.bool)
        first, first_given = self._first
        self._inputs_vary = (given != first_given) | self._inputs_vary
        if apart.shape == first.shape:
            both = (apart != 0).any(0) & (first != 0).any(0)
            cosine = (F.cosine_similarity(apart, first, 0) * both).sum() / both.sum()  # NaN of none
            self._targets_vary = (cosine < ALIKE) | self._targets_vary
        return ~self._inputs_vary | self._targets_vary


class _Evaluated(NamedTuple):
    loss: Tensor
    answers: Tensor  # (examples, numbers)
    gradient: Tensor  # of the loss, for the answers


def _evaluated(
    model: nn.Module,
    closure: Callable[[], Any],
    states: forwards.RandomState | None,
    change: Callable[[Tensor], Tensor],
) -> _Evaluated | None:
    """With the answers changed; `None` where the model is called otherwise than once, for one answer to each example,
    or where the loss needs its graph."""
    leaves: list[Tensor | None] = []

    def leave(module: nn.Module, args: tuple, y: Any) -> Tensor | None:
        plain = (
            isinstance(y, Tensor) and y.is_floating_point() and y.dim() > 0 and len(y) >= FEWEST and y.numel() <= MOST
        )
        leaves.append(change(y.detach()).expand_as(y).clone().requires_grad_() if plain else None)
        return leaves[-1]

    hook = model.register_forward_hook(leave)
    try:
        with forwards.ours(model, closure), torch.enable_grad():
            if states is not None:
                forwards.set_random_state(model, states)
            loss = closure()
            if len(leaves) != 1 or leaves[0] is None or not isinstance(loss, Tensor) or loss.numel() != 1:
                return None
            (gradient,) = torch.autograd.grad(loss.reshape(()), leaves[0])
    except Exception:  # a loss that differentiates the answers by the inputs, or does not take others
        return None
    finally:
        hook.remove()
    return _Evaluated(loss.detach().reshape(()).float(), *(_rows(x) for x in (leaves[0].detach(), gradient)))


def _mean(y: Tensor, x: Tensor) -> Tensor:
    """Over the examples, and over what may be they where time, or the members of an ensemble, come first."""
    beside = y.dim() > 2 or y.shape == x.shape[:2]
    return y.mean((0, 1) if beside else 0, keepdim=True)


def _rows(x: Tensor) -> Tensor:
    return x.float().reshape(len(x), -1)


def _clearly(difference: Tensor, *of: Tensor) -> Tensor:
    return difference.norm() > DIFFERENT * torch.stack([each.norm() for each in of]).max()
