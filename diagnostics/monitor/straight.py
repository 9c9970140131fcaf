"""Straight-through estimators without a detach: `z + (q - z)` is q, and what made z gets nothing through it.

Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons"; van den Oord et al. 2017.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from diagnostics.monitor import functions, losspath

LAST = 8  # differences that are remembered: the sum is written on the same line, or the next
MOST = 8  # sums that are walked from


class Straight:
    """Of one forward. `lost`: identities of the parameters that nothing passes to; an update from z to a function of
    z, as at a fixed point, passes to them all the same."""

    def __init__(self) -> None:
        self.lost = set[int]()
        self._last: deque[tuple[ref, ref, ref]] = deque(maxlen=LAST)
        self._walked = 0

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if len(args) != 2 or not all(isinstance(each, Tensor) for each in (*args, out)) or not torch.is_grad_enabled():
            return
        if func in functions.ADDING | functions.SUBTRACTING and self._walked < MOST:
            for q, z in self._cancelled(func in functions.ADDING, *args):
                self._walked += 1
                self.lost |= _behind(z) - _behind(q)
        if func in functions.SUBTRACTING and out.requires_grad:
            self._last.append((ref(out), ref(args[0]), ref(args[1])))

    def _cancelled(self, adds: bool, a: Tensor, b: Tensor) -> Iterator[tuple[Any, Any]]:
        """Nodes of q and z, of z + (q - z), (q - z) + z or z - (z - q); of a tensor without a graph there is none."""
        for difference, first, second in ((made(), x(), y()) for made, x, y in self._last):
            node = losspath.history(difference) if difference is b or (adds and difference is a) else None
            if node is None or node.name() != "SubBackward0":
                continue
            other = a if difference is b else b
            (one, _), (two, _) = node.next_functions
            if adds and second is other:
                yield one, two
            elif not adds and first is other:
                yield two, one


def _behind(node: Any) -> set[int]:
    nodes = losspath.walk(node, set(), losspath.FAR)
    return {id(each.variable) for each in nodes if hasattr(each, "variable")}
