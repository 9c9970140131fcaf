"""Which units of a layer have the same weights, in and out."""

from collections.abc import Sequence

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
    return torch.stack([_projected(_real(part.detach()).float(), generator) for part in parts]).sum(0)


def _real(rows: Shaped[Tensor, "units _"]) -> Shaped[Tensor, "units _"]:
    return torch.view_as_real(rows.resolve_conj()).flatten(1) if rows.is_complex() else rows


def _projected(rows: Float[Tensor, "units weights"], generator: torch.Generator) -> Side:
    directions = torch.randn(rows.shape[1], PROJECTIONS, generator=generator, dtype=rows.dtype) / PROJECTIONS**0.5
    return rows @ directions.to(rows.device)


def apart(incoming: Side, outgoing: Side, groups: int = 1, neighbours: int = 4) -> Float[Tensor, " units"]:
    """How far each unit is from the nearest of those sorted before it, relative to its own size: the larger of both
    sides' distances, up to one sign for both. A class of equal units has one that is far from all before it.

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
    sides = [(side[order], torch.linalg.vector_norm(side[order], dim=1)) for side in (incoming, outgoing)]
    nearest = torch.full_like(first, torch.inf)
    for offset in range(1, min(neighbours, len(order) - 1) + 1):
        distance = torch.minimum(*(_distance(sides, offset, sign) for sign in (1.0, -1.0)))
        different = (group[offset:] != group[:-offset]) | gone[offset:]
        nearest[offset:] = torch.fmin(nearest[offset:], distance.masked_fill(different, torch.inf))
    return nearest


def distinct_outputs(side: Side) -> Int[Tensor, ""]:
    """How many of a layer's outputs differ, if each has a twin; else all. Few twins among others are none: classes that
    never occur are pushed down alike. Nor are outputs that are each other's opposite, or all 0."""
    rows = side[torch.argsort(side[:, 0])]
    sizes = torch.linalg.vector_norm(rows, dim=1)
    apart = torch.linalg.vector_norm(rows[1:] - rows[:-1], dim=1) > SAME * torch.maximum(sizes[1:], sizes[:-1])
    begins = torch.nn.functional.pad(apart, (1, 1), value=True)  # whether each begins a class, and one after the last
    alone = (begins[1:] & begins[:-1]).any() | (sizes == 0).all() | ~torch.isfinite(sizes).all()
    return torch.where(alone, len(rows), begins[:-1].sum())


def _negligible(side: Side) -> Bool[Tensor, " units"]:
    sizes = side.abs().amax(1)  # a norm's squares would underflow
    return (sizes > 0) & (sizes < GONE * sizes.max())


def _distance(sides: Sequence[tuple[Side, Tensor]], offset: int, sign: float) -> Float[Tensor, " pairs"]:
    return torch.maximum(
        *(
            torch.linalg.vector_norm(rows[offset:] - sign * rows[:-offset], dim=1)
            / torch.maximum(norms[offset:], norms[:-offset]).clamp(min=torch.finfo(norms.dtype).tiny)
            for rows, norms in sides
        )
    )
