"""Frozen layers that still hold the numbers that they were initialized with: were they to hold a trained network's?

A uniform draw has an edge, a normal one its deviation, both by a formula of the layer's shape (LeCun et al. 1998,
Glorot & Bengio 2010, He et al. 2015; PyTorch's default is uniform within 1 / sqrt(inputs)). Training moves weights past
the edge, and away from the deviation and the normal law.
"""

import math
from collections.abc import Iterator, Sequence

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
        alone = {name for name, weight in held.items() if is_drawn(weight)}
        small = {name for name in held.keys() - alone if held[name].numel() < FEWEST_NORMAL}
        together = next((each for each in (small, held.keys()) if small and are_drawn([held[n] for n in each])), set())
        drawn = {name: weight for name, weight in held.items() if name in alone or name in together}
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
    w = _numbers(weight)
    rounding = float(torch.finfo(weight.dtype).eps)
    return any(
        _uniform(w / variance**0.5, rounding) or (len(w) >= FEWEST_NORMAL and _normal(w / variance**0.5))
        for variance in _variances(weight)
    )


@torch.no_grad()
def are_drawn(weights: Sequence[Tensor]) -> bool:
    """Whether weights too small to be told from normal draws each are so together, all of them by one formula."""
    if sum(len(_numbers(weight)) for weight in weights) < FEWEST_NORMAL:
        return False
    for variances in zip(*map(_variances, weights), strict=True):
        scaled = [_numbers(weight) / variance**0.5 for weight, variance in zip(weights, variances, strict=True)]
        if all(map(_deviates, scaled)) and _normal(torch.cat(scaled)):
            return True
    return False


def _numbers(weight: Tensor) -> Tensor:
    return weight.reshape(-1)[:: 1 + weight.numel() // MOST].double()


def _variances(weight: Tensor) -> tuple[float, ...]:
    """By the formulas in use, in one order for all weights."""
    inside = math.prod(weight.shape[2:])
    inputs, outputs = weight.shape[1] * inside, weight.shape[0] * inside
    return 1 / inputs, 2 / inputs, 2 / outputs, 2 / (inputs + outputs), 1 / (3 * inputs), 0.02**2, 0.01**2


def _uniform(x: Tensor, rounding: float) -> bool:
    edge, bound = float(x.abs().max()), 3**0.5
    return bound * (1 - 20 / len(x)) <= edge <= bound * (1 + rounding) and _deviates(x, 0.8)


def _normal(x: Tensor) -> bool:
    square, fourth = float(x.square().mean()), float(x.pow(4).mean())
    return _deviates(x) and abs(fourth / square**2 - 3) < ERRORS * (24 / len(x)) ** 0.5


def _deviates(x: Tensor, spread: float = 2.0) -> bool:
    """About 0, by 1; `spread`: variance of a square."""
    n, mean, square = len(x), float(x.mean()), float(x.square().mean())
    return abs(mean) <= ERRORS * (square / n) ** 0.5 and abs(square - 1) < ERRORS * (spread / n) ** 0.5


def _some(weight: Tensor) -> Tensor:
    return weight.detach().reshape(-1)[:SHOWN]
