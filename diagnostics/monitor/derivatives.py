"""Derivatives that are a part of the loss, taken without their graph: to the optimizer they are constants."""

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

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if func is torch.autograd.grad:
            if not kwargs.get("create_graph"):
                self._taken(args[1], out)
            return
        given = [each for each in functions.tensors((*args, *kwargs.values())) if each in self._without]
        for result in functions.tensors((out,)) if given else ():
            if not _learns(result):
                self._without[result] = True
            elif func in functions.ADDING and result.numel() == 1:
                self._added += [(each.detach().clone(), result.detach().clone()) for each in given]

    def _taken(self, by: Any, out: Any) -> None:
        by, out = ((each,) if isinstance(each, Tensor) else tuple(each) for each in (by, out))
        for x, derivative in zip(by, out, strict=True):
            if isinstance(derivative, Tensor) and not isinstance(x, nn.Parameter):
                self._without[derivative] = True

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
