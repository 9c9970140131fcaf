"""Scores that a loss compares with classes or labels, where they are not the model's own output: made of embeddings, or
inside a model that returns its loss. Seen where a closure computes the loss, and read as an output is (`answers`). Of
an absolute error, whose gradient does not show the targets, they are those that the function is given."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor import functions
from diagnostics.monitor.answers import Answers
from diagnostics.monitor.examples import Examples
from diagnostics.monitor.likeness import FEWEST
from diagnostics.monitor.sequences import Ends

PLACES, SEEN = 64, 512  # numbers of an example that have an answer each, and examples that are remembered


class Comparison(NamedTuple):
    """A call of a loss function: its first argument, whether that has a graph, and the others."""

    func: Callable
    answer: Tensor
    trained: bool
    args: tuple
    kwargs: dict[str, Any]

    def of(self, answer: Tensor) -> Tensor:
        """What the function returns for another answer."""
        return self.func(answer, *self.args, **self.kwargs).detach()


def compared(func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> list[Comparison]:
    if func not in functions.LABELLED | functions.ROBUST or not args or not isinstance(out, Tensor) or out.numel() != 1:
        return []
    return [Comparison(func, args[0].detach(), args[0].requires_grad, args[1:], kwargs)] if args[0].dim() else []


class Compared:
    """The targets of all measured updates, if the loss is one such call whose first argument depends on the weights."""

    def __init__(self) -> None:
        self._robust = Robust()
        self._answer: int | None = None  # numbers in the model's answer to one example, if it is called once
        self._answers = Answers(lambda: None, lambda seconds: None, Examples())
        self._of_answers: bool | None = None  # by the first closure, which was run with a graph

    @property
    def of_whole_loss(self) -> bool:
        """Whether that call's form is known, and the whole loss is of it."""
        return self._answers.of_whole_loss

    def meet(self, calls: list[Comparison], ends: Sequence[Ends]) -> None:
        """`ends`: of the model's calls, where these were asked for."""
        if ends:
            self._answer = ends[0][1][1:].numel() if len(ends) == 1 else None
        if self._of_answers is None:
            calls = _labelled(calls) or calls
            self._of_answers = len(calls) == 1 and calls[0].trained

    def columns(self, calls: list[Comparison], inputs: Tensor | None, loss: Any) -> dict[str, Tensor]:
        """`loss`: the closure's, which the call has to have returned."""
        calls = _labelled(calls) or calls
        if not self._of_answers or len(calls) != 1 or not isinstance(loss, Tensor):
            return {}
        (call,) = calls
        if call.func in functions.ROBUST:
            whole = call.answer.dim() > 0 and call.answer.numel() == len(call.answer) * (self._answer or 0)
            return self._robust.columns(call, loss.detach()) if whole else {}
        with torch.enable_grad():
            leaf = call.answer.requires_grad_()
            answer = leaf.view_as(leaf)  # which has a node to wait at
            self._answers.passed(inputs, answer)
            torch.autograd.grad(call.func(answer, *call.args, **call.kwargs), leaf)
        return self._answers.columns(loss.detach())


class Robust:
    """The same answer to every input, as the targets of earlier batches have it: their median or their mean."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None

    def columns(self, call: Comparison, loss: Tensor) -> dict[str, Tensor]:
        target = functions.argument((call.answer, *call.args), call.kwargs, 1, "target")
        if not isinstance(target, Tensor) or target.shape != call.answer.shape or not target.numel():
            return {}
        placed = target.dim() > 1 and target[0].numel() <= PLACES
        rows = target.detach().float().reshape(len(target) if placed else target.numel(), -1)
        before, self._rows = self._rows, rows[:SEEN]
        if before is None or before.shape[1] != rows.shape[1]:
            return {}
        self._rows = torch.cat([before, self._rows])[-SEEN:]
        if len(before) < FEWEST:
            return {}
        middles = (before.median(0).values, before.mean(0))
        costs = [call.of(each.expand_as(rows).reshape(target.shape).to(target)) for each in middles]
        own = (call.of(call.answer) - loss).abs() <= stats.rounding(call.answer) * loss.abs()
        vary = (before != before[0]).any()
        return {"constant_loss": torch.where(own & vary, torch.stack(costs).amin(), torch.nan)}


def _labelled(calls: list[Comparison]) -> list[Comparison]:
    return [call for call in calls if call.func in functions.LABELLED]
