"""What the loss would be if every example got the mean of the model's answers: no form of the loss need be known.

A loss that compares answers with targets of the data shows it where all answers are one: its gradient then differs from
example to example, by the targets alone, and by others in other batches. One that compares answers with each other, as
of pictures and their captions, has no gradient there, and is lower beside: to tell all from all is the least that it
asks for. A game's, whose targets are the same in each batch, a likelihood's or a score's, which has none, one that is
linear in the answers, as a policy's, and one that wants all answers to be one say nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from diagnostics.monitor import forwards, transfer
from diagnostics.monitor.answers import MOST
from diagnostics.monitor.likeness import FEWEST

SELDOM = 2  # measured updates for each that is looked at: it takes two forwards
TRIES = 3  # of these, in turn, after which nothing is expected any more
DIFFERENT = 1e-3  # of a gradient's size: less is rounding
SOME = 64  # numbers of an answer, by which two batches' targets are compared
ALIKE = 0.9  # cosine of what the targets of two batches leave, from which they count as the same
TOSSED = 0.3  # of how untrained answers differ: by so much they are moved from their mean, to see what that costs
TOSSES = 6  # of the first looks: an indefinite loss is lowered by half of all moves, one that is least there by none


class Averaged:
    """What is known so far is on the model's device, so that nothing waits for it."""

    def __init__(self) -> None:
        self._seen = self._failed = 0
        self._bends: Tensor | bool = False  # whether the gradient was seen to depend on the answers
        self._first: tuple[Tensor, Tensor] | None = None  # what the first batch's targets leave, and that batch
        self._targets_vary: Tensor | bool = False
        self._inputs_vary: Tensor | bool = False
        self._spread: Tensor | None = None  # of the first answers
        self._steepest: Tensor | None = None  # gradient that was seen
        self._lowered: Tensor | bool = False  # the loss of one answer to all, by a move away from it
        self._tosses = 0

    def due(self) -> bool:
        """At this measured update."""
        self._seen += 1
        return self._failed < TRIES and self._seen % SELDOM == 1

    def columns(
        self,
        model: nn.Module,
        closure: Callable[[], Any],
        states: forwards.RandomState | None,
        x: Tensor | None,
        part_known: bool,
    ) -> dict[str, Tensor]:
        """`x`: what the model is given. `part_known`: a part of the loss that compares answers with targets has a form
        that is known, and tells by itself."""
        if x is None or x.dim() == 0 or len(x) < FEWEST:  # as the last batch of an epoch
            return {}
        again = partial(evaluated, model, closure, states)
        usual = again()
        mean = None if usual is None else again(lambda y: _mean(y, x))
        if usual is None or mean is None:
            self._failed += 1
            return {}
        self._failed = 0
        told = self._contrasts(usual, mean, again, x)
        if part_known or usual.alone is None or mean.alone is None:
            self._give_up(told)
        else:
            told = told | self._compares(usual.alone, mean.alone, x)
        losses = {"answered_loss": usual.loss, "averaged_loss": mean.loss}
        return {name: torch.where(told, loss, torch.nan) for name, loss in losses.items()}

    def _compares(self, usual: "_Answers", mean: "_Answers", x: Tensor) -> Tensor:
        """With targets."""
        apart = mean.gradient - mean.gradient.mean(0)
        differ = _clearly(usual.values - usual.values.mean(0), usual.values)  # as they do at the start
        bends = differ & _clearly(usual.gradient - mean.gradient, usual.gradient, mean.gradient)
        self._bends = bends | self._bends
        return _clearly(apart, usual.gradient, mean.gradient) & self._bends & self._is_of_data(apart, x)

    def _contrasts(
        self, usual: "_Evaluated", mean: "_Evaluated", again: Callable[[Callable], "_Evaluated | None"], x: Tensor
    ) -> Tensor:
        """With each other."""
        if self._spread is None or self._steepest is None:
            self._spread, self._steepest = usual.spread, usual.slope
        self._steepest = torch.maximum(self._steepest, usual.slope)
        if self._tosses < TOSSES:
            self._tosses += 1
            draw = torch.Generator(x.device).manual_seed(self._tosses)
            size = TOSSED * self._spread
            moved = again(lambda y: _mean(y, x) + size.to(y) * _noise(y, draw))
            lower = mean.loss - mean.loss.abs() * DIFFERENT
            self._lowered = self._lowered | (moved.loss < lower if moved is not None else False)
        return (mean.slope <= DIFFERENT * self._steepest) & self._lowered

    def _give_up(self, told: Tensor) -> None:
        """Once no contrast was found, where that can be read without waiting."""
        if self._tosses == TOSSES and transfer.on_host(told.device) and not bool(told):
            self._failed = TRIES

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


class _Answers(NamedTuple):
    values: Tensor  # (examples, numbers)
    gradient: Tensor  # of the loss, for these


class _Evaluated(NamedTuple):
    loss: Tensor
    parts: list[_Answers]  # an output each
    alone: _Answers | None  # where the model is called once, for one output that is a tensor

    @property
    def slope(self) -> Tensor:
        return torch.stack([part.gradient.norm() for part in self.parts]).norm()

    @property
    def spread(self) -> Tensor:
        """Mean deviation of a number, from example to example."""
        return torch.stack([(part.values - part.values.mean(0)).square().mean() for part in self.parts]).mean().sqrt()


def evaluated(
    model: nn.Module,
    closure: Callable[[], Any],
    states: forwards.RandomState | None,
    change: Callable[[Tensor], Tensor] = lambda y: y,
) -> _Evaluated | None:
    """With the answers changed; `None` where there is none to each example, or where the loss needs its graph."""
    leaves: list[Tensor] = []
    plain: list[bool] = []

    def leave(module: nn.Module, args: tuple, output: Any) -> Any:
        parts, form = tree_flatten(output)
        plain.append(isinstance(output, Tensor))
        for at, y in enumerate(parts):
            if _is_answer(y):
                parts[at] = change(y.detach()).expand_as(y).clone().requires_grad_()
                leaves.append(parts[at])
        return tree_unflatten(parts, form)

    hook = model.register_forward_hook(leave)
    try:
        with forwards.ours(model, closure), torch.enable_grad():
            if states is not None:
                forwards.set_random_state(model, states)
            loss = closure()
            if not leaves or not isinstance(loss, Tensor) or loss.numel() != 1:
                return None
            gradients = torch.autograd.grad(loss.reshape(()), leaves, allow_unused=True)
    except Exception:  # a loss that differentiates the answers by the inputs, or does not take others
        return None
    finally:
        hook.remove()
    parts = [_Answers(_rows(y), _rows(g)) for y, g in zip(leaves, gradients, strict=True) if g is not None]
    one = len(parts) == len(leaves) == 1 and plain == [True]
    return _Evaluated(loss.detach().reshape(()).float(), parts, parts[0] if one else None) if parts else None


def _is_answer(y: Any) -> bool:
    if not (isinstance(y, Tensor) and y.is_floating_point() and y.requires_grad and y.dim() > 0):
        return False
    return len(y) >= FEWEST and y.numel() <= MOST


def _noise(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw, device=like.device, dtype=torch.float32).to(like.dtype)


def _mean(y: Tensor, x: Tensor) -> Tensor:
    """Over the examples, and over what may be they where time, or the members of an ensemble, come first."""
    beside = y.dim() > 2 or y.shape == x.shape[:2]
    return y.mean((0, 1) if beside else 0, keepdim=True)


def _rows(x: Tensor) -> Tensor:
    return x.detach().float().reshape(len(x), -1)


def _clearly(difference: Tensor, *of: Tensor) -> Tensor:
    return difference.norm() > DIFFERENT * torch.stack([each.norm() for each in of]).max()
