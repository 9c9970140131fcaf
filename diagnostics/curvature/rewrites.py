"""Functions whose double backward is wrong, missing or slow, replaced by their formula while the closure runs.

`torch._weight_norm` has a double backward that is silently wrong by 13-41 % (torch 2.13); `hardsigmoid` has none.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diagnostics.curvature import convolutions, hoisted


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    found = F.relu6(input + 3) / 6
    return input.copy_(found) if inplace else found


WRONG = {torch._VF._weight_norm: _weight_norm, F.hardsigmoid: _hardsigmoid}
FORMULAS = WRONG | hoisted.FORMULAS | convolutions.FORMULAS


class Rewrites(TorchFunctionMode):
    """Replaces the functions in FORMULAS. `autocast` tells whether any function ran in lower precision, `stops` whether
    the gradient is stopped on its way to something: what is detached, or computed from weights without a graph.
    `recomputed`: a function without a right double backward was called where the backward calls it again, unreplaced.
    """

    def __init__(self):
        super().__init__()
        self.autocast = self.stops = self.recomputed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.autocast = self.autocast or torch._C._is_any_autocast_enabled()
        if not self.stops and (func is Tensor.detach or not torch.is_grad_enabled()):
            self.stops = any(isinstance(each, Tensor) and each.requires_grad for each in args)
        if func in WRONG and hoisted.saved_by_hooks():
            self.recomputed = True
        return FORMULAS.get(func, func)(*args, **(kwargs or {}))
