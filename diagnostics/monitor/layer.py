"""What is known of a weight that makes units, and of a tensor that holds them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Layer:
    """One weight that makes units, and the weights that read them. `escaped`: something else reads them as well.

    `readers`: (weight, entries per unit) of each layer that reads the units. `scales`: per-unit parameters on the way.
    `groups`: equal blocks of units that are never alike, since they have inputs (or attention) of their own. `heads`:
    of those, as many as are heads of attention, which may be alike as wholes.
    `part`: which rows of the weight these units are, where it makes several things at once (queries, keys and values),
    which leaves the whole `split`. `gates`: rows of the weight that each unit has, one from each of as many blocks, and
    so of every parameter in `recurrent`. `factors`: layers whose units, one of each, are multiplied to make these.
    """

    weight: Tensor
    bias: Tensor | None
    transposed: bool
    groups: int
    heads: int = 1
    scales: list[Tensor] = field(default_factory=list)
    readers: list[tuple[Tensor, int]] = field(default_factory=list)
    escaped: bool = False
    part: Tensor | None = None
    split: bool = False
    gates: int = 1
    recurrent: list[Tensor] = field(default_factory=list)
    factors: tuple["Layer", ...] = ()
    is_factor: bool = False


@dataclass(frozen=True)
class Flow:
    """What is known of one tensor: whose units it holds (`None`: mixed), entries per unit, activations it carries.

    `places`: where the units are, once they have been moved out of their order along one dimension.
    """

    layer: Layer | None = None
    entries: int = 1
    channels_first: bool = False
    carries: frozenset[int] = frozenset()
    fresh: int | None = None
    parameter: bool = False
    places: Tensor | None = None


NOTHING = Flow()
PARAMETER = Flow(parameter=True)


def width(layer: Layer) -> int:
    """Number of units."""
    if layer.factors:
        return width(layer.factors[0])
    if layer.part is not None:
        return len(layer.part)
    return layer.weight.shape[1 if layer.transposed else 0] // layer.gates


def in_step(tensors: Sequence[Tensor], data: Sequence[Flow]) -> bool:
    """Whether two tensors hold the units of a layer each, equally many and in the same places."""
    if tensors[0].shape != tensors[1].shape or not all(flow.layer and flow.places is None for flow in data):
        return False
    kinds = {(width(f.layer), f.layer.groups, f.entries, f.channels_first) for f in data if f.layer}
    return len(kinds) == 1
