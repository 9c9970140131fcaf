"""The one number among a model's own parameters that the loss would gain most from, were it not so far.

Weights of a layer are many and share what there is to do. A parameter that a module of the user's holds may be a
quantity with a unit, as a resistance, and each of its numbers counts.
"""

from collections.abc import Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from diagnostics.monitor.describe import own_parameters
from diagnostics.monitor.distributed import is_dtensor

FEW = 64  # numbers of a parameter: a table of more is as many weights
MOST = 16  # parameters: each costs a few small operations


class Elastic:
    """`columns` after a measured update, of the table `layers`."""

    def __init__(self, model: nn.Module) -> None:
        few = (id(p) for _, p in own_parameters(model) if p.numel() <= FEW and p.is_floating_point())
        self._own = set(islice(few, MOST))

    @torch.no_grad()
    def columns(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`elasticity`: what the loss changes by, to first order, if a number moves by its own size, `elastic_size`. Of
        the number for which the product of both is largest, and its place."""
        own = {at: p for at, p in enumerate(tensors.values()) if id(p) in self._own and not is_dtensor(p)}
        gradients = {at: p.grad for at, p in own.items() if p.grad is not None and p.grad.layout == torch.strided}
        if not gradients:
            return {}
        found = torch.full((3, len(tensors)), torch.nan, device=next(iter(gradients.values())).device)
        for at, gradient in gradients.items():
            numbers = own[at].detach().flatten().float()
            worth = gradient.flatten().float() * numbers
            place = (worth * numbers).abs().nan_to_num(0.0).argmax()
            found[:, at] = torch.stack([worth[place], place.float(), numbers[place].abs()])
        return dict(zip(("elasticity", "elastic_at", "elastic_size"), found, strict=True))
