"""Pairs of answers that a loss asks to be alike: two views of one example, say. Are they more so than strangers?"""

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from diagnostics import stats
from diagnostics.monitor import functions, transfer

FEWEST = 8  # rows: of fewer the mean over strangers tells little
OF_UNIT_LENGTH = functions.GATING | {F.mse_loss}  # compare directions only where rows have length 1


class Partners:
    """Of the calls of one forward that compare two matrices row by row, by their rows' directions alone, or two answers
    by their distance."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []
        self._answers: list[Tensor] = []  # mean cosine between the rows of each
        self._own: list[ref[Tensor]] = []  # the model's answers

    @torch.no_grad()
    def follow(self, func: Callable, args: tuple, outside: bool) -> None:
        """After a call. `outside`: in the loss, not in the model, where products have other meanings."""
        if outside and func is F.normalize and args and not isinstance(args[0], Parameter):
            self._add(args[0])
        if not (func in functions.COSINE or (outside and func in OF_UNIT_LENGTH)) or len(args) < 2:
            return
        a, b = args[:2]
        if not row_by_row(a, b):
            return
        if func is F.mse_loss and self._is_own(a) and self._is_own(b):  # two answers, whose distances are meant
            self._seen.append(stats.pair_likenesses(a.detach(), b.detach()))
            return
        cosines = stats.pair_cosines(a.detach(), b.detach())
        if func not in functions.COSINE:
            unit = stats.of_length_one(a.detach(), -1) & stats.of_length_one(b.detach(), -1)
            cosines = torch.where(unit, cosines, torch.nan)
        self._seen.append(cosines)

    @torch.no_grad()
    def answered(self, output: Any) -> None:
        """By the model: its direction alone is meant where it has length 1."""
        self._own += [ref(each) for each in functions.tensors((output,))]
        if not _is_matrix(output):
            return
        first = stats.of_length_one(output.detach()[:1], -1)
        if not transfer.on_host(first.device) or bool(first):  # of most models not, and no more is asked
            self._add(output, stats.of_length_one(output.detach(), -1))

    def _is_own(self, x: Tensor) -> bool:
        """An answer, or a part of one, as of two views that were given together."""
        return any(each() is x or (x._base is not None and each() is x._base) for each in self._own)

    def _add(self, answers: Any, of_length_one: Tensor | None = None) -> None:
        if _is_matrix(answers) and len(answers) >= FEWEST:
            cosine = stats.mean_cosine(answers.detach())
            self._answers.append(cosine if of_length_one is None else torch.where(of_length_one, cosine, torch.nan))

    def columns(self) -> dict[str, Tensor]:
        """Of `scalars`: the mean over these calls."""
        found = {"answers_cosine": torch.stack(self._answers).nanmean()} if self._answers else {}
        if not self._seen:
            return found
        pair, left, right = torch.stack(self._seen).nanmean(0)
        return found | {"pair_cosine": pair, "left_cosine": left, "right_cosine": right}


def row_by_row(a: Any, b: Any) -> bool:
    """Whether these are two matrices of one shape, of rows of several numbers each."""
    return _is_matrix(a) and _is_matrix(b) and a.shape == b.shape and len(a) >= FEWEST and a is not b


def _is_matrix(x: Any) -> bool:
    plain = type(x) is Tensor and x.layout == torch.strided and not x.is_nested
    return plain and x.is_floating_point() and x.dim() == 2 and x.shape[1] > 1
