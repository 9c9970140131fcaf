"""Among how many a softmax of a loss chooses: what guessing costs, where the targets themselves are not known.

A contrastive loss takes that softmax over the other examples of a batch, less those that a mask takes out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics.monitor import functions

LOGARITHMS = {F.cross_entropy, F.log_softmax, torch.log_softmax, Tensor.log_softmax, torch.logsumexp, Tensor.logsumexp}
FEW = 8  # of fewer, another loss may come to lie at their logarithm
MASKED = 1e4  # below the largest score: no softmax of float32 gives such a one anything
ROWS = 256  # enough to know whether all choose among as many


def counted(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Number of rows, and the smallest and the largest number of scores that one has, of a call that takes a softmax of
    each."""
    weighted = func is F.cross_entropy and functions.argument(args, kwargs, 2, "weight") is not None
    if func not in LOGARITHMS or weighted:
        return
    x, dim = functions.argument(args, kwargs, 0, "input"), functions.argument(args, kwargs, 1, "dim")
    if type(x) is not Tensor or x.is_nested or not x.is_floating_point() or not x.numel() or not x.dim():
        return
    dim = dim if isinstance(dim, int) else min(1, x.dim() - 1)
    rows = x.detach().movedim(dim, -1).reshape(-1, x.shape[dim])
    some = rows[:ROWS]
    choices = (some > some.amax(-1, keepdim=True) - MASKED).sum(-1)
    yield torch.stack([choices.new_tensor(len(rows)), *choices.aminmax()])


def told(several: Sequence[Tensor]) -> list[list[float]]:
    """log C of each number C of choices, and whether they are the rows themselves, or all others: examples that are
    compared with each other."""
    numbers = [each.tolist() for each in several]
    choices = {(low, low in (rows, rows - 1)) for rows, low, high in numbers if low == high >= FEW}
    return [[math.log(count), float(each_other)] for count, each_other in sorted(choices)]
