"""Functions whose double backward is wrong, missing or slow, replaced by their formula while the closure runs.

`torch._weight_norm` has a double backward that is silently wrong by 13-41 % (torch 2.13); `hardsigmoid` has none.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diagnostics.curvature import hoisted


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


FORMULAS = {torch._VF._weight_norm: _weight_norm, F.hardsigmoid: _hardsigmoid} | hoisted.FORMULAS


class Rewrites(TorchFunctionMode):
    """Replaces the functions in FORMULAS; `autocast` tells whether any function ran in lower precision."""

    def __init__(self):
        super().__init__()
        self.autocast = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.autocast = self.autocast or torch._C._is_any_autocast_enabled()
        return FORMULAS.get(func, func)(*args, **(kwargs or {}))
