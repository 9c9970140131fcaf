"""Which units of a layer have the same weights, in and out."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

SAME = 1e-4  # relative distance within which two units count as one
GONE = torch.finfo(torch.float32).eps  # of the largest unit's norm: what is less adds nothing to the others' sum
ALIKE = 1e-2  # within which they have not yet come apart: what they can do together, one of them nearly does alone
PROJECTIONS = 32  # random directions that stand for a unit's weights; the distance they give is within a quarter

Side = Float[Tensor, "units projections"]


def project(*parts: Shaped[Tensor, "units _"]) -> Side:
    """One side (incoming or outgoing weights) of a layer's units: 32 random projections stand for each unit's weights,
    which lie in one or more parts. Linear memory, where all pairs would take units² of it.

    The same directions are drawn each time, from a generator of their own: the global random state is not touched.
    """
    generator = torch.Generator().manual_seed(sum(part.shape[1] for part in parts))
    return torch.stack([_projected(part.detach().float(), generator) for part in parts]).sum(0)


def _projected(rows: Float[Tensor, "units weights"], generator: torch.Generator) -> Side:
    directions = torch.randn(rows.shape[1], PROJECTIONS, generator=generator) / PROJECTIONS**0.5
    return rows @ directions.to(rows.device)


def distinct_units(
    incoming: Side, outgoing: Side, groups: int = 1, within: float = SAME, neighbours: int = 4
) -> Int[Tensor, ""]:
    """Number of classes of units equal, up to one sign for both sides, `within` that part of each side's own norm.

    Units are sorted by one projection's size, so that equal ones become neighbours; each is compared with the few
    before it. Johnson-Lindenstrauss: projected distances and norms are the true ones within about a quarter. Units of
    different `groups` (equal blocks, one after the other) have inputs of their own and are different. So are units that
    weight decay has taken away on both sides: nearly zero, they are no copies of each other.
    """
    first = incoming[:, 0] + 0.7548776662 * outgoing[:, 0]
    order = torch.argsort(first.abs())
    group = order.div(len(order) // groups, rounding_mode="floor")
    by_group = torch.argsort(group, stable=True)
    order, group = order[by_group], group[by_group]
    gone = (_negligible(incoming) & _negligible(outgoing))[order]
    repeated = torch.zeros_like(gone)
    for offset in range(1, min(neighbours, len(order) - 1) + 1):
        same = _same(incoming, outgoing, order[offset:], order[:-offset], within)
        repeated[offset:] |= same & (group[offset:] == group[:-offset]) & ~gone[offset:]
    return len(order) - repeated.sum()


def _negligible(side: Side) -> Bool[Tensor, " units"]:
    sizes = side.abs().amax(1)  # a norm's squares would underflow
    return (sizes > 0) & (sizes < GONE * sizes.max())


def _same(incoming: Side, outgoing: Side, i: Tensor, j: Tensor, within: float) -> Bool[Tensor, " pairs"]:
    signs = (1.0, -1.0)
    near = [_near(incoming, i, j, sign, within) & _near(outgoing, i, j, sign, within) for sign in signs]
    return near[0] | near[1]


def _near(side: Side, i: Tensor, j: Tensor, sign: float, within: float) -> Bool[Tensor, " pairs"]:
    one, other = side[i], side[j]
    distance, *norms = (torch.linalg.vector_norm(each, dim=1) for each in (one - sign * other, one, other))
    return distance <= within * torch.maximum(*norms)
