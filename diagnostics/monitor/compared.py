"""Scores that a loss compares with classes or labels, where they are not the model's own output: made of embeddings, or
inside a model that returns its loss. Seen where a closure computes the loss, and read as an output is (`answers`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diagnostics.monitor import functions
from diagnostics.monitor.answers import Answers


class Comparison(NamedTuple):
    """A call of a loss function: its first argument, whether that has a graph, and the others."""

    func: Callable
    answer: Tensor
    trained: bool
    args: tuple
    kwargs: dict[str, Any]


def compared(func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> list[Comparison]:
    if func not in functions.LABELLED or not args or not isinstance(out, Tensor) or out.numel() != 1:
        return []
    return [Comparison(func, args[0].detach(), args[0].requires_grad, args[1:], kwargs)] if args[0].dim() else []


class Compared:
    """The targets of all measured updates, if the loss is one such call whose first argument depends on the weights."""

    def __init__(self) -> None:
        self._answers = Answers(scale=lambda: None, charge=lambda seconds: None)
        self._of_answers: bool | None = None  # by the first closure, which was run with a graph

    @property
    def of_whole_loss(self) -> bool:
        """Whether that call's form is known, and the whole loss is of it."""
        return self._answers.of_whole_loss

    def meet(self, calls: list[Comparison]) -> None:
        if self._of_answers is None:
            self._of_answers = len(calls) == 1 and calls[0].trained

    def columns(self, calls: list[Comparison], inputs: Tensor | None, loss: Any) -> dict[str, Tensor]:
        """`loss`: the closure's, which the call has to have returned."""
        if not self._of_answers or len(calls) != 1 or not isinstance(loss, Tensor):
            return {}
        (call,) = calls
        with torch.enable_grad():
            leaf = call.answer.requires_grad_()
            answer = leaf.view_as(leaf)  # which has a node to wait at
            self._answers.passed(inputs, answer)
            torch.autograd.grad(call.func(answer, *call.args, **call.kwargs), leaf)
        return self._answers.columns(loss.detach())
