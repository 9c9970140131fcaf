"""Whether outputs and the targets that a loss compares them with were flattened in the same order.

A view of (time, batch) as one axis runs through the batch first, and that of (batch, time) through time.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions


class Flattened:
    """Of one forward. `crossed`: the axes that became one, of the first output and target in which they are exchanged;
    of two axes of one length nobody can tell."""

    def __init__(self) -> None:
        self.crossed: list[list[int]] = []
        self._axes = WeakTensorKeyDictionary()  # which axes became the first one

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if func in functions.FLATTEN and isinstance(out, Tensor) and args and isinstance(args[0], Tensor):
            axes = _merged(args[0], out)
            if axes:
                self._axes[out] = axes
        elif func in functions.WITH_TARGETS and not self.crossed:
            both = [functions.argument(args, kwargs, 0, "input"), functions.argument(args, kwargs, 1, "target")]
            if not all(isinstance(each, Tensor) for each in both):
                return
            output, target = [self._axes.get(each) for each in both]
            if output and target and output == target[::-1] != target:
                self.crossed = [output, target]


def _merged(x: Tensor, out: Tensor) -> list[int]:
    """The two first axes, where they became one and the others stayed."""
    shape = list(x.shape)
    return shape[:2] if len(shape) > 1 and list(out.shape) == [prod(shape[:2]), *shape[2:]] else []
