"""Losses as they are written out: answers less targets, squared, or one an example, and of these the mean or sum."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch.nn.functional as F
from torch import Tensor

from diagnostics.monitor import functions
from diagnostics.monitor.likeness import FEWEST

LAST = 16  # results that are remembered: what is reduced was made shortly before


class Difference(NamedTuple):
    answer: Tensor
    target: Tensor


class Error(NamedTuple):
    """Of answers to examples; `of` makes it of other answers, up to a factor."""

    answer: Tensor
    target: Tensor
    name: str
    of: Callable[[Tensor], Tensor]


class Errors:
    """Of one forward, followed up to the one number that is made of each."""

    def __init__(self) -> None:
        self._last: deque[tuple[ref, Difference | Error]] = deque(maxlen=LAST)

    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> Error | None:
        """The error of all examples, if that is what this call returned."""
        if not args or not isinstance(out, Tensor):
            return None
        found = of_function(func, args, kwargs) or difference(func, args) or self._next(func, args, kwargs)
        if isinstance(found, Error) and out.numel() == 1:
            return found
        if found is not None:
            self._last.append((ref(out), found))
        return None

    def _next(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> Error | None:
        given = [each for each in args[:2] if isinstance(each, Tensor)]
        known = next((each for held, each in self._last if any(held() is one for one in given)), None)
        if isinstance(known, Error):
            return known if func in functions.REDUCING or _by_a_number(func, args) else None
        if known is not None and _squares(func, args, kwargs):
            return Error(*known, "squared error", partial(F.mse_loss, target=known.target))
        if known is not None and func in functions.ABSOLUTE:
            return Error(*known, "absolute error", partial(F.l1_loss, target=known.target))
        return None


def of_function(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Error | None:
    """Of a loss function, whether it gives one number or one an example."""
    if func not in functions.WITH_TARGETS or not args:
        return None
    answer, target = args[0], functions.argument(args, kwargs, 1, "target")
    examples = all(isinstance(each, Tensor) and each.dim() and len(each) >= FEWEST for each in (answer, target))
    if not examples or len(answer) != len(target):
        return None
    return Error(answer, target, functions.spelled(func), lambda other: func(other, *args[1:], **kwargs).mean())


def difference(func: Callable, args: tuple) -> Difference | None:
    """Of answers and targets, as many examples each; which is which is told by the graph, where there is one."""
    if func not in functions.SUBTRACTING or len(args) < 2 or not all(isinstance(each, Tensor) for each in args[:2]):
        return None
    a, b = args[:2]
    if a.shape != b.shape or not a.dim() or len(a) < FEWEST or not (a.is_floating_point() and b.is_floating_point()):
        return None
    return Difference(b, a) if b.requires_grad else Difference(a, b)


def _by_a_number(func: Callable, args: tuple) -> bool:
    return func in functions.GATING | functions.DIVIDING and any(isinstance(each, int | float) for each in args[:2])


def _squares(func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    if func in functions.GATING:
        return len(args) > 1 and args[1] is args[0]
    return func in functions.SQUARE or (
        func in functions.POWER and functions.argument(args, kwargs, 1, "exponent") == 2
    )
