"""Which units of a layer have the same weights, in and out."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

SAME = 1e-4  # relative distance within which two units count as one
ALIKE = 1e-2  # within which they have not yet come apart: what they can do together, one of them nearly does alone
PROJECTIONS = 32  # random directions that stand for a unit's weights; the distance they give is within a quarter


@dataclass(frozen=True)
class Side:
    """One side (incoming or outgoing weights) of a layer's units: random projections and norms of its rows."""

    projected: Float[Tensor, "units projections"]
    norm: Float[Tensor, " units"]


def project(rows: Shaped[Tensor, "units weights"]) -> Side:
    """32 random projections of each row stand for the row: linear memory, where all pairs would take units² of it.

    The same directions are drawn each time, from a generator of their own: the global random state is not touched.
    """
    rows = rows.detach().float()
    generator = torch.Generator().manual_seed(rows.shape[1])
    directions = torch.randn(rows.shape[1], PROJECTIONS, generator=generator) / PROJECTIONS**0.5
    return Side(rows @ directions.to(rows.device), torch.linalg.vector_norm(rows, dim=1))


def distinct_units(
    incoming: Side, outgoing: Side, groups: int = 1, within: float = SAME, neighbours: int = 4
) -> Int[Tensor, ""]:
    """Number of classes of units equal, up to one sign for both sides, `within` that part of each side's own norm.

    Units are sorted by one projection's size, so that equal ones become neighbours; each is compared with the few
    before it. Johnson-Lindenstrauss: the projected distance is the distance within about a quarter. Units of different
    `groups` (equal blocks, one after the other) have inputs of their own and are different.
    """
    first = incoming.projected[:, 0] + 0.7548776662 * outgoing.projected[:, 0]
    order = torch.argsort(first.abs())
    group = order.div(len(order) // groups, rounding_mode="floor")
    by_group = torch.argsort(group, stable=True)
    order, group = order[by_group], group[by_group]
    repeated = torch.zeros_like(order, dtype=torch.bool)
    for offset in range(1, min(neighbours, len(order) - 1) + 1):
        same = _same(incoming, outgoing, order[offset:], order[:-offset], within)
        repeated[offset:] |= same & (group[offset:] == group[:-offset])
    return len(order) - repeated.sum()


def _same(incoming: Side, outgoing: Side, i: Tensor, j: Tensor, within: float) -> Bool[Tensor, " pairs"]:
    signs = (1.0, -1.0)
    near = [_near(incoming, i, j, sign, within) & _near(outgoing, i, j, sign, within) for sign in signs]
    return near[0] | near[1]


def _near(side: Side, i: Tensor, j: Tensor, sign: float, within: float) -> Bool[Tensor, " pairs"]:
    distance = torch.linalg.vector_norm(side.projected[i] - sign * side.projected[j], dim=1)
    return distance <= within * torch.maximum(side.norm[i], side.norm[j])
