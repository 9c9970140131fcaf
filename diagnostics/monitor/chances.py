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
    """Smallest and largest number of scores that a row has, of a call that takes a softmax of rows."""
    weighted = func is F.cross_entropy and functions.argument(args, kwargs, 2, "weight") is not None
    if func not in LOGARITHMS or weighted:
        return
    x, dim = functions.argument(args, kwargs, 0, "input"), functions.argument(args, kwargs, 1, "dim")
    if type(x) is not Tensor or x.is_nested or not x.is_floating_point() or not x.numel() or not x.dim():
        return
    dim = dim if isinstance(dim, int) else min(1, x.dim() - 1)
    rows = x.detach().movedim(dim, -1).reshape(-1, x.shape[dim])[:ROWS]
    yield torch.stack((rows > rows.amax(-1, keepdim=True) - MASKED).sum(-1).aminmax())


def told(several: Sequence[Tensor]) -> list[float]:
    """log C of each number C of choices."""
    choices = {int(low) for low, high in several if low == high >= FEW}
    return [math.log(each) for each in sorted(choices)]
