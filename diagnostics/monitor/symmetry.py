"""How many different hidden units each layer has: incoming, bias and outgoing weights compared together.

Units alike on one side only drift apart; alike on both they get the same gradient and stay alike for ever. Which layers
read a layer's units is taken from the forward itself (`flow.Graph`). Heads of attention are units too, by their values:
if those stay alike while they move, so do queries and keys. And so are the dimensions of an embedding, whoever reads
them: if all stay alike while they move, they are read alike. So are outputs, if each has a twin; and what a module's
own parameters hold (`components`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics import stats
from diagnostics.monitor.describe import plain_name
from diagnostics.monitor.distributed import is_dtensor
from diagnostics.monitor.layer import Layer, width

ROWS = 64  # of an embedding: dimensions that differ do so in nearly all


@dataclass(frozen=True)
class Sides:
    """Incoming (with bias and per-unit scales) and outgoing weights of a layer's units, in parts with one row a unit.

    `groups`: units of different groups have inputs of their own and count as different.
    """

    name: str
    incoming: list[Tensor]
    outgoing: list[Tensor]
    groups: int = 1


def rows(
    layers: Sequence[Layer], model: nn.Module, components: Iterable[tuple[str, int, Tensor]] = ()
) -> tuple[list[str], dict[str, Tensor]]:
    """Names and columns of table `symmetry`. `components`: names, numbers of them and of different ones."""
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    layers = [layer for layer in layers if layer.weight.numel()]
    found = [*_layers(layers, names), *_attention(model)]
    tables = [*_embeddings(model), *_outputs(layers, names), *components]
    if not found and not tables:
        return [], {}
    sides = [(stats.project(*each.incoming), stats.project(*each.outgoing), each.groups) for each in found]
    apart = [stats.apart(*each) for each in sides]
    columns = {
        "units": torch.tensor([*map(len, apart), *(units for _, units, _ in tables)]),
        "distinct_units": torch.stack([*((each > stats.SAME).sum() for each in apart), *(n for *_, n in tables)]),
        "alike_units": torch.stack([*((each <= stats.ALIKE).sum() for each in apart), *(n * 0 for *_, n in tables)]),
        "groups": torch.tensor([*(each.groups for each in found), *(1 for _ in tables)]),
    }
    return _numbered([*(sides.name for sides in found), *(name for name, *_ in tables)]), columns


def _numbered(names: list[str]) -> list[str]:
    """Parts of one weight share its name: the second is "name#1"."""
    return [f"{name}#{names[:at].count(name)}" if name in names[:at] else name for at, name in enumerate(names)]


def _layers(layers: Sequence[Layer], names: dict[int, str]) -> Iterator[Sides]:
    """Hidden layers whose units are always read by the same layers, and by nothing else."""
    for layer in layers:
        hidden = layer.readers and not layer.escaped and not layer.is_factor and _used_alike(layer, layers)
        if hidden and id(layer.weight) in names and not is_dtensor(layer.weight):
            incoming = _incoming(layer)
            units = len(incoming[0])
            outgoing = [_outgoing(weight, entries, units) for weight, entries in layer.readers if weight.numel()]
            known = [part for part in outgoing if part is not None]
            if units > 1 and len(known) == len(outgoing):
                name = names[id(layer.weight)]
                yield Sides(name, incoming, known, layer.groups)
                if layer.heads > 1 and layer.weight.requires_grad:
                    into, out = ([part.reshape(layer.heads, -1) for part in side] for side in (incoming, known))
                    yield Sides(f"{name.rpartition('.')[0]}.heads".removeprefix("."), into, out)


def _used_alike(layer: Layer, layers: Sequence[Layer]) -> bool:
    """Whether this is the only use of a weight; or the first of several, as in a network that is called several times,
    whose units all go through the same and are read by the same."""
    if layer.factors:
        return all(not (each.readers or each.escaped) and _used_alike(each, layers) for each in layer.factors)
    uses = [each for each in layers if each.weight is layer.weight and each.part is None and not each.factors]
    if len(uses) > 1 and (uses[0] is not layer or is_dtensor(layer.weight) or not _alike(uses)):
        return False
    return layer.weight.dim() > 1 and not layer.split and _apart(layer, layers)


def _alike(uses: Sequence[Layer]) -> bool:
    ways = {
        (
            each.groups,
            each.escaped,
            each.is_factor,
            *map(_where, each.scales),
            *((_where(w), n) for w, n in each.readers),
        )
        for each in uses
    }
    return len(ways) == 1


def _where(tensor: Tensor) -> tuple[Any, ...]:
    """What views of one weight that were made anew have in common."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _apart(layer: Layer, layers: Sequence[Layer]) -> bool:
    """Whether each unit of a weight that is split into parts is read as one of one part only."""
    same = [each for each in layers if each.weight is layer.weight]
    parts = [each.part for each in same if each.part is not None and not each.split]
    if not parts:
        return True
    numbers = torch.cat(parts)
    return len(numbers.unique()) == len(numbers) and not any(s.split and (s.readers or s.escaped) for s in same)


def _incoming(layer: Layer) -> list[Tensor]:
    if layer.factors:
        factors = [part for each in layer.factors for part in _incoming(each)]
        return [*factors, *_per_unit(layer.scales, len(factors[0]))]
    if layer.recurrent:
        stacked = [parameter.detach() for parameter in (layer.weight, *layer.recurrent)]
        return [_slices(each, layer.gates, width(layer)) for each in stacked]
    weight = layer.weight.detach()
    matrix = weight.movedim(1, 0) if layer.transposed else weight
    matrix = matrix.reshape(len(matrix), -1)
    bias = [] if layer.bias is None else [layer.bias.detach()]
    if layer.part is not None:
        part = layer.part.to(matrix.device)
        matrix, bias = matrix[part], [each[part] for each in bias]
    return [matrix, *_per_unit([*bias, *layer.scales], len(matrix))]


def _per_unit(parameters: Sequence[Tensor], units: int) -> list[Tensor]:
    return [each.detach().reshape(-1, 1) for each in parameters if each.numel() == units]


def _outgoing(weight: Tensor, entries: int, units: int) -> Tensor | None:
    """The reader's weights by unit: (out, units * entries, ...) -> (units, out * entries * ...)."""
    if weight.dim() < 2 or weight.shape[1] != units * entries:
        return None
    split = weight.detach().reshape(weight.shape[0], units, -1)
    return split.movedim(1, 0).reshape(units, -1)


def _attention(model: nn.Module) -> Iterator[Sides]:
    """Of each attention module its heads, and within a head the channels of its values.

    The weights that sum over time are a head's own, so two of its value channels with the same incoming and outgoing
    weights stay alike. Heads are alike where all of q, k, v and the output projection are.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            heads, out = module.num_heads, module.out_proj.weight.detach()
            parts = [p.detach() for p in (module.in_proj_weight, module.in_proj_bias) if p is not None]
            if heads > 1:
                incoming = [_slices(p, 3, heads) for p in parts]
                outgoing = out.reshape(len(out), heads, -1).movedim(1, 0).reshape(heads, -1)
                yield Sides(f"{plain_name(name)}.heads".removeprefix("."), incoming, [outgoing])
            values = [p.reshape(3, len(out), -1)[2] for p in parts]
            yield Sides(f"{plain_name(name)}.in_proj_weight".removeprefix("."), values, [out.T], heads)


def _embeddings(model: nn.Module) -> Iterator[tuple[str, int, Tensor]]:
    """Name, dimensions, and 1 if all dimensions are the same in some of the rows, else how many there are.

    Some that are alike may be right, as scores of classes that never occur. Rows that are all 0 have not begun.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad and not is_dtensor(module.weight):
            weight = module.weight.detach()
            if weight.shape[1] > 1 and weight.numel():
                some = weight[:: -(-len(weight) // ROWS)].float()
                same = ((some - some[:, :1]).abs().amax() <= stats.SAME * some.abs().amax()) & (some != 0).any()
                yield f"{plain_name(name)}.weight".removeprefix("."), some.shape[1], torch.where(same, 1, some.shape[1])


def _outputs(layers: Sequence[Layer], names: dict[int, str]) -> Iterator[tuple[str, int, Tensor]]:
    """Name, number of outputs and of different ones of each of the last layers, which no other reads. What comes after,
    the loss, may tell them apart; it does not while each stays a twin of another."""
    last = takewhile(lambda layer: not (layer.readers or layer.is_factor), reversed(layers))
    for layer in reversed(list(last)):
        plain = layer.groups == 1 and not (layer.factors or layer.recurrent) and _used_alike(layer, layers)
        if plain and id(layer.weight) in names and layer.weight.requires_grad and not is_dtensor(layer.weight):
            incoming = _incoming(layer)
            if len(incoming[0]) > 1:
                name = f"{names[id(layer.weight)].rpartition('.')[0]}.outputs".removeprefix(".")
                yield name, len(incoming[0]), stats.distinct_outputs(stats.project(*incoming))


def _slices(stacked: Tensor, blocks: int, units: int) -> Tensor:
    """(blocks * units * d, ...), such as q, k and v or the gates of an LSTM -> (units, blocks * d * ...)."""
    return stacked.reshape(blocks, units, -1).movedim(1, 0).reshape(units, -1)
