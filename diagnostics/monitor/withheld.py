"""Parameters that the closure's loss has a gradient for, while the backward passes of the first update left none."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diagnostics.monitor import describe, forwards


def names(model: nn.Module, closure: Callable[[], Any]) -> list[str]:
    """None where the loop has removed all gradients by now."""
    trained = {name: each for name, each in describe.unwrap(model).named_parameters() if each.requires_grad}
    without = {name: each for name, each in trained.items() if each.grad is None}
    if not without or len(without) == len(trained):
        return []
    with forwards.ours(model, closure), torch.enable_grad():
        gradients = torch.autograd.grad(closure(), list(without.values()), allow_unused=True)
    found = [name for name, each in zip(without, gradients, strict=True) if each is not None and bool(each.any())]
    return [describe.plain_name(name) for name in found]
