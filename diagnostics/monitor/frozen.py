"""Frozen layers that still hold the numbers that they were initialized with: were they to hold a trained network's?

A uniform draw has an edge, a normal one its deviation, both by a formula of the layer's shape (LeCun et al. 1998,
Glorot & Bengio 2010, He et al. 2015; PyTorch's default is uniform within 1 / sqrt(inputs)). Training moves weights past
the edge, and away from the deviation and the normal law.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diagnostics.monitor.describe import plain_name
from diagnostics.monitor.distributed import is_dtensor

FEWEST, FEWEST_NORMAL = 200, 4000  # numbers that tell a uniform draw by its edge, a normal one by its moments
MOST = 1 << 16
ERRORS = 4.0  # standard ones
SHOWN = 256  # numbers by which a change is noticed
MOSTLY = 0.5  # of the frozen weights: beside a bank of filters that is fixed on purpose
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


class Frozen:
    """Weights that are frozen and as they were drawn, as long as nothing else writes to them."""

    def __init__(self, model: nn.Module, used: set[str]) -> None:
        """`used`: names of modules that a forward called."""
        held = {name: weight for name, weight in _frozen(model) if name.rpartition(".")[0] in used}
        drawn = {name: weight for name, weight in held.items() if is_drawn(weight)}
        some, all_of_them = (sum(weight.numel() for weight in each.values()) for each in (drawn, held))
        told = drawn if some >= MOSTLY * all_of_them else {}
        self._kept = {name: (weight, _some(weight).clone()) for name, weight in told.items()}

    @property
    def names(self) -> list[str]:
        return list(self._kept)

    @torch.no_grad()
    def changed(self) -> bool:
        """Whether some have been written to, as the target of a moving average is; these are forgotten."""
        same = {name: each for name, each in self._kept.items() if torch.equal(_some(each[0]), each[1])}
        changed, self._kept = len(same) < len(self._kept), same
        return changed


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, LAYERS) or not isinstance(weight, nn.Parameter) or weight.requires_grad:
            continue
        plain = weight.layout == torch.strided and not (weight.is_meta or is_dtensor(weight))
        if plain and weight.is_floating_point() and weight.numel() >= FEWEST:
            yield plain_name(f"{path}.weight".removeprefix(".")), weight


@torch.no_grad()
def is_drawn(weight: Tensor) -> bool:
    """Whether a weight of a linear map, (out, in, ...), is a draw of one of the usual initializations."""
    inside = math.prod(weight.shape[2:])
    inputs, outputs = weight.shape[1] * inside, weight.shape[0] * inside
    w = weight.reshape(-1)[:: 1 + weight.numel() // MOST].double()
    n, edge = len(w), float(w.abs().max())
    mean, square, fourth = (float(w.pow(power).mean()) for power in (1, 2, 4))
    if not square > 0 or abs(mean) > ERRORS * (square / n) ** 0.5:
        return False
    variances = {1 / inputs, 2 / inputs, 2 / outputs, 2 / (inputs + outputs), 1 / (3 * inputs), 0.02**2, 0.01**2}
    rounding = float(torch.finfo(weight.dtype).eps)
    for variance in variances:
        bound = (3 * variance) ** 0.5
        at_edge = bound * (1 - 20 / n) <= edge <= bound * (1 + rounding)
        if at_edge and abs(square / variance - 1) < ERRORS * (0.8 / n) ** 0.5:
            return True
        near = abs(square / variance - 1) < ERRORS * (2 / n) ** 0.5
        if n >= FEWEST_NORMAL and near and abs(fourth / square**2 - 3) < ERRORS * (24 / n) ** 0.5:
            return True
    return False


def _some(weight: Tensor) -> Tensor:
    return weight.detach().reshape(-1)[:SHOWN]
