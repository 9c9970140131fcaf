"""Scores that cannot leave a range: inner products of vectors of length 1, times constants."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics import stats
from diagnostics.monitor import functions

LEFT_OUT = -50.0  # a score this low counts for nothing in a softmax of cosines: e^-50


class Cosines:
    """`given`: of each call that expects logits and is given such scores, the largest there can be; and the classes."""

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, int]] = []
        self._most = WeakTensorKeyDictionary()  # of each such tensor of scores

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if not isinstance(out, Tensor) or not args:
            return
        joined = args[0] if func in functions.JOINING else ()
        if joined and all(part in self._most for part in joined):  # positives beside negatives
            self._most[out] = torch.stack([self._most[part] for part in joined]).max()
        if not isinstance(args[0], Tensor):
            return
        x = args[0]
        if func in functions.COSINE:
            self._most[out] = x.new_ones(())
        elif func in functions.INNER | functions.LINEAR:
            y, bias = functions.argument(args, kwargs, 1, "weight"), functions.argument(args, kwargs, 2, "bias")
            if bias is None and _is_matrix(x) and _is_matrix(y):
                unit = stats.of_length_one(x, -1) & stats.of_length_one(y, -1 if func in functions.LINEAR else -2)
                self._most[out] = torch.where(unit, 1.0, torch.inf)
        elif x in self._most:
            factor = _factor(func, args, kwargs)
            if factor is not None:
                self._most[out] = self._most[x] * factor

    def logits(self, x: Tensor, classes: int) -> None:
        if x in self._most and x.dim() > classes:
            self.given.append((self._most[x], x.shape[classes]))


def _is_matrix(x: Any) -> bool:
    """One whose rows have a length that can be asked for: real, dense, and not in parts on several processes."""
    plain = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_nested
    return plain and x.is_floating_point() and x.dim() > 1


def _factor(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """What a call multiplies scores by, unless it is learned; `None` if it does anything else to them."""
    if func in functions.LAYOUT | functions.NEGATING or _leaves_out(func, args, kwargs):
        return args[0].new_ones(())
    if func not in functions.GATING | functions.DIVIDING or len(args) < 2:
        return None
    if not isinstance(args[1], Tensor | int | float):
        return None
    by = torch.as_tensor(args[1])
    if by.numel() != 1 or by.requires_grad:
        return None
    by = by.abs().reshape(())
    return by if func in functions.GATING else by.reciprocal()


def _leaves_out(func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether some scores are filled with a number that takes them out of the softmax, as an example's with itself."""
    value = kwargs.get("value", kwargs.get("fill_value", args[-1]))
    return func in functions.FILLING and isinstance(value, int | float) and value <= LEFT_OUT
