"""How many different hidden units each layer has: incoming, bias and outgoing weights compared together.

Units alike on one side only drift apart; alike on both they get the same gradient and stay alike for ever. Which layers
read a layer's units is taken from the forward itself (`flow.Graph`). Heads of an attention layer are units too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diagnostics import stats
from diagnostics.monitor.describe import plain_name
from diagnostics.monitor.flow import Layer


@dataclass(frozen=True)
class Sides:
    """Incoming (with bias and per-unit scales) and outgoing weights of a layer's units, one row a unit."""

    name: str
    incoming: Tensor
    outgoing: Tensor


def rows(layers: Sequence[Layer], model: nn.Module) -> tuple[list[str], dict[str, Tensor]]:
    """Names and columns of table `symmetry`."""
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    found = [*_layers(layers, names), *_heads(model)]
    units = [len(sides.incoming) for sides in found]
    distinct = [stats.distinct_units(stats.project(s.incoming), stats.project(s.outgoing)) for s in found]
    columns = {"units": torch.tensor(units), "distinct_units": torch.stack(distinct)} if found else {}
    return [sides.name for sides in found], columns


def _layers(layers: Sequence[Layer], names: dict[int, str]) -> Iterator[Sides]:
    """Hidden layers that are used once: every reader known, and nothing else reads their units."""
    uses = [id(layer.weight) for layer in layers]
    for layer in layers:
        hidden = layer.readers and not layer.escaped and layer.weight.dim() > 1 and uses.count(id(layer.weight)) == 1
        if hidden and id(layer.weight) in names and not hasattr(layer.weight, "placements"):
            incoming = _incoming(layer)
            outgoing = [_outgoing(weight, entries, len(incoming)) for weight, entries in layer.readers]
            if len(incoming) > 1 and all(part is not None for part in outgoing):
                yield Sides(names[id(layer.weight)], incoming, torch.cat([p for p in outgoing if p is not None], dim=1))


def _incoming(layer: Layer) -> Tensor:
    weight = layer.weight.detach()
    matrix = weight.movedim(1, 0) if layer.transposed else weight
    matrix = matrix.reshape(len(matrix), -1)
    perunit = [layer.bias, *layer.scales]
    columns = [p.detach().reshape(-1, 1) for p in perunit if p is not None and p.numel() == len(matrix)]
    group = [torch.arange(len(matrix), device=matrix.device).div(len(matrix) // layer.groups, rounding_mode="floor")]
    grouped = [g[:, None].to(matrix.dtype) for g in group] if layer.groups > 1 else []  # other groups read other inputs
    return torch.cat([matrix, *columns, *grouped], dim=1)


def _outgoing(weight: Tensor, entries: int, units: int) -> Tensor | None:
    """The reader's weights by unit: (out, units * entries, ...) -> (units, out * entries * ...)."""
    if weight.dim() < 2 or weight.shape[1] != units * entries:
        return None
    split = weight.detach().reshape(weight.shape[0], units, -1)
    return split.movedim(1, 0).reshape(units, -1)


def _heads(model: nn.Module) -> Iterator[Sides]:
    """Cloned heads: equal slices of q, k, v and of the output projection."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None and module.num_heads > 1:
            heads, out = module.num_heads, module.out_proj.weight.detach()
            parts = [module.in_proj_weight, module.in_proj_bias, module.bias_k, module.bias_v]
            incoming = [_slices(p.detach(), heads) for p in parts[:2] if p is not None]
            outgoing = out.reshape(len(out), heads, -1).movedim(1, 0).reshape(heads, -1)
            yield Sides(f"{plain_name(name)}.heads".removeprefix("."), torch.cat(incoming, dim=1), outgoing)


def _slices(stacked: Tensor, heads: int) -> Tensor:
    """(3 * heads * d, ...) of q, k and v -> (heads, 3 * d * ...)."""
    return stacked.reshape(3, heads, -1).movedim(1, 0).reshape(heads, -1)
