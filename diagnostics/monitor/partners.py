"""Pairs of answers that a loss asks to be alike: two views of one example, say. Are they more so than strangers?"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor import functions

FEWEST = 8  # rows: of fewer the mean over strangers tells little
OF_UNIT_LENGTH = functions.GATING | {torch.nn.functional.mse_loss}  # compare directions only where rows have length 1


class Partners:
    """Of the calls of one forward that compare two matrices row by row, by their rows' directions alone."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, outside: bool) -> None:
        """After a call. `outside`: in the loss, not in the model, where products have other meanings."""
        if not (func in functions.COSINE or (outside and func in OF_UNIT_LENGTH)) or len(args) < 2:
            return
        a, b = args[:2]
        if not row_by_row(a, b):
            return
        cosines = stats.pair_cosines(a.detach(), b.detach())
        if func not in functions.COSINE:
            unit = stats.of_length_one(a.detach(), -1) & stats.of_length_one(b.detach(), -1)
            cosines = torch.where(unit, cosines, torch.nan)
        self._seen.append(cosines)

    def columns(self) -> dict[str, Tensor]:
        """Of `scalars`: the mean over these calls."""
        if not self._seen:
            return {}
        pair, left, right = torch.stack(self._seen).nanmean(0)
        return {"pair_cosine": pair, "left_cosine": left, "right_cosine": right}


def row_by_row(a: Any, b: Any) -> bool:
    """Whether these are two matrices of one shape, of rows of several numbers each."""
    return _is_matrix(a) and _is_matrix(b) and a.shape == b.shape and len(a) >= FEWEST and a is not b


def _is_matrix(x: Any) -> bool:
    plain = type(x) is Tensor and x.layout == torch.strided and not x.is_nested
    return plain and x.is_floating_point() and x.dim() == 2 and x.shape[1] > 1
