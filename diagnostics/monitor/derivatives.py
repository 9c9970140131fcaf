"""Derivatives that a loss is made of: taken without their graph they are constants to the optimizer, and those of
derivatives are zero where the network is piecewise linear."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions, losspath

LONGEST = 2000  # nodes walked from one tensor


class Derivatives:
    """Of one forward with a graph. What meets something that is learned, but to be added to a loss, may be meant:
    an input that was moved against the model, or a weight."""

    def __init__(self) -> None:
        self._added: list[tuple[Tensor, Tensor]] = []  # each such number, and the sum
        self._without = WeakTensorKeyDictionary()  # tensors computed from such derivatives alone
        self._of_derivatives = WeakTensorKeyDictionary()  # computed from any
        self._first: list[Tensor] = []  # whether a derivative had an entry that is not zero
        self._second: list[Tensor] = []  # the same of one of a derivative

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        tensors = list(functions.tensors((*args, *kwargs.values())))
        if func is torch.autograd.grad:
            of, by = (functions.argument(args, kwargs, at, name) for at, name in enumerate(("outputs", "inputs")))
            again = any(each in self._of_derivatives for each in functions.tensors((of,)))
            self._taken(by, out, bool(kwargs.get("create_graph")), again)
            return
        for result in functions.tensors((out,)) if any(each in self._of_derivatives for each in tensors) else ():
            self._of_derivatives[result] = True
        given = [each for each in tensors if each in self._without]
        for result in functions.tensors((out,)) if given else ():
            if not _learns(result):
                self._without[result] = True
            elif func in functions.ADDING and result.numel() == 1:
                self._added += [(each.detach().clone(), result.detach().clone()) for each in given]

    def _taken(self, by: Any, out: Any, with_graph: bool, again: bool) -> None:
        """`again`: of what was computed from derivatives."""
        by, out = ((each,) if isinstance(each, Tensor) else tuple(each) for each in (by, out))
        for x, derivative in zip(by, out, strict=True):
            if isinstance(derivative, Tensor) and not isinstance(x, nn.Parameter):
                if not with_graph:
                    self._without[derivative] = True
                self._of_derivatives[derivative] = True
                (self._second if again else self._first).append((derivative != 0).any())

    def no_second(self) -> bool:
        """Whether derivatives of derivatives were taken, by what is no weight, and each was zero at every point."""
        return bool(self._second) and any(map(bool, self._first)) and not any(map(bool, self._second))

    def share(self) -> float:
        """Of the sum, the largest of what was added in this way; 0 where nothing was."""
        return max((_share(float(each), float(total)) for each, total in self._added), default=0.0)


def _learns(x: Tensor) -> bool:
    """Whether a parameter is in its graph, which there may be of what the model was given alone."""
    nodes = losspath.walk(x.grad_fn, seen := set[Any](), LONGEST)
    return any(isinstance(getattr(node, "variable", None), nn.Parameter) for node in nodes) or len(seen) >= LONGEST


def _share(part: float, total: float) -> float:
    size = abs(part) + abs(total - part)
    return abs(part) / size if size > 0 else 0.0
