"""Scores that cannot leave a range: inner products of vectors of length 1, times constants. Or those that were meant to
be such, of numbers that were made length 1 along the batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics import stats
from diagnostics.monitor import functions
from diagnostics.monitor.masks import is_left_out

EXAMPLES = 8  # of so many rows no feature has length 1 by chance; behind a batch norm its square is their number
VIEWS = 1, 2  # of the examples, each made length 1 and then put below each other


class Cosines:
    """`given`: of each call that expects logits and is given such scores, the largest there can be; and the classes.
    `across`: whether they are products of rows whose columns have length 1."""

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, int]] = []
        self.across: list[Tensor] = []
        self._most = WeakTensorKeyDictionary()  # of each such tensor of scores
        self._across = WeakTensorKeyDictionary()

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if not isinstance(out, Tensor) or not args or not isinstance(args[0], Tensor):
            return
        x = args[0]
        if func in functions.COSINE:
            self._most[out] = x.new_ones(())
        elif func in functions.INNER | functions.LINEAR:
            y, bias = functions.argument(args, kwargs, 1, "weight"), functions.argument(args, kwargs, 2, "bias")
            if bias is None and _is_matrix(x) and _is_matrix(y):
                unit = stats.of_length_one(x, -1) & stats.of_length_one(y, -1 if func in functions.LINEAR else -2)
                self._most[out] = torch.where(unit, 1.0, torch.inf)
                if x.dim() == 2 and len(x) >= EXAMPLES:
                    along = [stats.of_length_one(x / views**0.5, 0) for views in VIEWS]
                    self._across[out] = torch.stack(along).any() & ~stats.of_length_one(x, 1)
        elif x in self._most:
            factor = x.new_ones(()) if is_left_out(func, args, kwargs) else _factor(func, args)
            if factor is not None:
                self._most[out] = self._most[x] * factor
                if x in self._across:
                    self._across[out] = self._across[x]

    def logits(self, x: Tensor, classes: int) -> None:
        if x in self._most and x.dim() > classes:
            self.given.append((self._most[x], x.shape[classes]))
        if x in self._across:
            self.across.append(self._across[x])


def _is_matrix(x: Any) -> bool:
    """One whose rows have a length that can be asked for: real, dense, and not in parts on several processes."""
    plain = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided and not x.is_nested
    return plain and x.is_floating_point() and x.dim() > 1


def _factor(func: Callable, args: tuple) -> Tensor | None:
    """What a call multiplies scores by, unless it is learned; `None` if it does anything else to them."""
    if func in functions.LAYOUT | functions.NEGATING:
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
