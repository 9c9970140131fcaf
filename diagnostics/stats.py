"""Tensors in, statistics out: what is recorded of gradients, weights, activations and inputs.

Everything stays on the tensors' device: no function here may read a number (`.item()`, `bool(tensor)`, boolean
indexing), because that would wait for the device. Nothing here remembers anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

foreach: Any = torch  # its _foreach functions are what torch.optim is made of, but private by name

FLAT = 0.05  # a unit is flat where its derivative is below this share of the activation's maximum
FIRING = -2.3  # below this input GELU and SiLU pass on less than a tenth of it: counted as inactive
SAME = 1e-4  # relative distance within which two units count as one
ALIKE = 1e-2  # within which they have not yet come apart: what they can do together, one of them nearly does alone
PROJECTIONS = 32  # random directions that stand for a unit's weights; the distance they give is within a quarter


# -- norms ------------------------------------------------------------------------------------------------------------


def squared_norms(tensors: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    """Squared Euclidean norm of each tensor, accumulated in float32 at least and squared in float64.

    Half precision would overflow; so does float32 only where one tensor's norm is above 1e19.
    """
    norms = _norms(tensors)
    return norms.to(_wide(norms.device)).square()


def total_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Euclidean norm of all tensors (of one type, on one device) together: the same in fewer operations."""
    norms = _norms(tensors)
    return torch.linalg.vector_norm(norms, dtype=_wide(norms.device))


def _norms(tensors: Sequence[Tensor]) -> Float[Tensor, " tensors"]:
    half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors)
    return torch.stack(foreach._foreach_norm(list(tensors), 2, dtype=torch.float32 if half else None))


def silent_rows(gradient: Tensor) -> Float[Tensor, ""]:
    """How many rows (output units) of a weight's gradient are exactly zero."""
    return (gradient.flatten(1).count_nonzero(dim=1) == 0).float().sum()


def cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Cosine of two vectors that are given in the same pieces."""
    dot = inner(first, second)
    return dot / (inner(first, first) * inner(second, second)).sqrt()


def inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Inner product of two vectors in pieces; the pieces are summed in float64."""
    dots = [torch.dot(a.reshape(-1).float(), b.reshape(-1).float()) for a, b in zip(first, second, strict=True)]
    return torch.stack(dots).double().sum()


# -- activations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What an activation function does to a unit: its derivative over its maximum, and what counts as inactive.

    `inactive` is `None` where a unit cannot die, `saturates` says whether a flat unit is a saturated one.
    """

    name: str
    derivative: Callable[[Tensor], Tensor]
    inactive: Callable[[Tensor], Tensor] | None = None
    saturates: bool = False


def _gelu_slope(x: Tensor) -> Tensor:
    """d/dx x Phi(x) = Phi(x) + x phi(x); its maximum 1.1290 is at sqrt(2)."""
    return 0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * torch.exp(-0.5 * x * x) * 0.3989422804014327


def _silu_slope(x: Tensor) -> Tensor:
    """d/dx x sigmoid(x); its maximum 1.0998 is at 2.3994."""
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _mish_slope(x: Tensor) -> Tensor:
    """d/dx x tanh(softplus(x)); its maximum 1.0885 is at 1.4907."""
    gate = torch.tanh(F.softplus(x))
    return gate + x * torch.sigmoid(x) * (1 - gate.square())


def _hardswish_slope(x: Tensor) -> Tensor:
    return torch.where(x < 3, (2 * x + 3) / 6 * (x > -3), 1.0)


def _not_positive(x: Tensor) -> Tensor:
    return x <= 0


def _sigmoid_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return 4 * gate * (1 - gate)


def _ones(x: Tensor) -> Tensor:
    return torch.ones_like(x)


_KINDS = (
    Kind("relu", lambda x: (x > 0).to(x.dtype), _not_positive),
    Kind("relu6", lambda x: ((x > 0) & (x < 6)).to(x.dtype), _not_positive),
    Kind("threshold relu", lambda x: (x > 0).to(x.dtype), _not_positive),
    Kind("leaky_relu", lambda x: torch.where(x > 0, 1.0, 0.01)),
    Kind("elu", lambda x: x.clamp(max=0).exp()),
    Kind("softplus", torch.sigmoid),
    Kind("gelu", lambda x: _gelu_slope(x) / 1.1289, lambda x: x < FIRING),
    Kind("silu", lambda x: _silu_slope(x) / 1.0998, lambda x: x < FIRING),
    Kind("mish", lambda x: _mish_slope(x) / 1.0885, lambda x: x < FIRING),
    Kind("hardswish", lambda x: _hardswish_slope(x) / 1.5, lambda x: x <= -3),
    Kind("sigmoid", _sigmoid_slope, saturates=True),
    Kind("tanh", lambda x: 1 - torch.tanh(x).square(), saturates=True),
    Kind("softsign", lambda x: (1 + x.abs()).pow(-2), saturates=True),
    Kind("hardtanh", lambda x: (x.abs() < 1).to(x.dtype), saturates=True),
    Kind("hardsigmoid", lambda x: (x.abs() < 3).to(x.dtype), saturates=True),
    Kind("threshold", torch.zeros_like, saturates=True),
    Kind("softmax", _ones, saturates=True),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "threshold relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "threshold": lambda x: (x > 0).to(x.dtype),
    "softmax": lambda x: F.softmax(x, dim=-1),
}  # the standard functions, for hand-written activations that only name their kind


@dataclass(frozen=True)
class UnitCounts:
    """What one call of an activation did to each of its units, as sums that can be added over calls and processes.

    `inputs`: values each unit received. `active`, `flat`: how many of them left it active, or on a flat piece
    (one entry for all classes of a softmax, where both count rows).
    `moments`: sums over all entries of input, input², output, output², output == 0, derivative over its maximum,
    normalized entropy (softmax; one summand a row), and the number of entries.
    """

    units: int
    inputs: int
    active: Int[Tensor, " units"]
    flat: Int[Tensor, " units"]
    moments: Float[Tensor, " 8"]
    largest: Float[Tensor, ""]


def add(a: UnitCounts, b: UnitCounts) -> UnitCounts:
    """Counts of two calls with the same units."""
    largest = torch.maximum(a.largest, b.largest)
    return UnitCounts(
        a.units, a.inputs + b.inputs, a.active + b.active, a.flat + b.flat, a.moments + b.moments, largest
    )


def by_unit(x: Shaped[Tensor, "*shape"], channels_first: bool) -> Shaped[Tensor, "inputs units"]:
    """One column a unit: the channels after a convolution or batch norm on (N, C, ...), else the last dimension."""
    if x.dim() < 2:
        return x.reshape(1, -1)
    units = x.movedim(1, -1) if channels_first and x.dim() > 2 else x
    return units.reshape(-1, units.shape[-1])


def count_units(kind: Kind, x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"], channels_first: bool) -> UnitCounts:
    """Counts of one activation call from its input `x` and output `y`."""
    inputs, outputs = by_unit(x.detach(), channels_first).float(), by_unit(y.detach(), channels_first).float()
    slope = kind.derivative(inputs)
    active = (~kind.inactive(inputs)).sum(0) if kind.inactive else torch.full_like(inputs[0], len(inputs)).long()
    moments = (inputs, inputs.square(), outputs, outputs.square(), outputs == 0, slope)
    sums = [moment.sum(dtype=_wide(moment.device)) for moment in moments]
    sums += [torch.full_like(sums[0], torch.nan), torch.full_like(sums[0], inputs.numel())]
    return UnitCounts(inputs.shape[1], len(inputs), active, (slope < FLAT).sum(0), torch.stack(sums), inputs.amax())


def count_softmax(
    logits: Float[Tensor, "rows classes"],
    p: Float[Tensor, "rows classes"],
    reachable: Float[Tensor, " rows"] | None = None,
) -> UnitCounts:
    """A softmax is flat in a row whose normalized entropy is below `FLAT`; every class shares the row's count.

    `reachable`: number of classes a mask leaves to each row; rows with fewer than two are not counted.
    """
    p, logits = p.detach().float(), logits.detach().float()
    width = torch.full_like(p[:, 0], p.shape[-1]) if reachable is None else reachable
    counted = width >= 2
    entropy = torch.where(counted, torch.special.entr(p).sum(-1) / width.clamp(min=2).log(), 0)
    flat, rows = (counted & (entropy < FLAT)).sum(), counted.sum()
    finite = torch.where(torch.isfinite(logits), logits, 0)
    spread = entropy * (p.numel() / rows.clamp(min=1))  # so that over all entries it gives the mean of the rows counted
    entries = (finite, finite.square(), p, p.square(), p == 0, torch.ones_like(p), spread)
    sums = [entry.sum(dtype=_wide(p.device)) for entry in entries]
    sums.append(torch.full_like(sums[0], p.numel()))
    return UnitCounts(p.shape[-1], len(p), rows.reshape(1), flat.reshape(1), torch.stack(sums), finite.amax())


def unit_fractions(
    kind: Kind, inputs: int, active: Int[Tensor, " units"], flat: Int[Tensor, " units"], needed: int
) -> Float[Tensor, " 2"]:
    """Dead and saturated fractions of a window of `inputs` values a unit; NaN while that is fewer than `needed`.

    Dead: inactive on every input. Saturated: flat on at least 95 % of them; of a softmax, the share of flat rows.
    """
    nan = torch.full((), torch.nan, device=flat.device)
    dead = (active == 0).float().mean() if kind.inactive and inputs >= needed else nan
    if kind.name == "threshold":
        saturated = torch.ones_like(nan)
    elif not kind.saturates or inputs < needed:
        saturated = nan
    elif kind.name == "softmax":
        saturated = flat[0] / active[0]
    else:
        saturated = (flat >= 0.95 * inputs).float().mean()
    return torch.stack([dead, saturated])


def unit_moments(moments: Float[Tensor, " 8"]) -> Float[Tensor, " 7"]:
    """mean, std of the output, share of zeros, mean derivative, mean, std of the input, mean normalized entropy."""
    x, xx, y, yy, zeros, slope, entropy = (moments[:7] / moments[7]).unbind()
    return torch.stack([y, _deviation(y, yy), zeros, slope, x, _deviation(x, xx), entropy])


def _deviation(mean: Tensor, square: Tensor) -> Tensor:
    return (square - mean.square()).clamp(min=0).sqrt()


# -- inputs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Mean and centred second moment of the rows seen so far, mergeable (Chan, Golub, LeVeque 1983), in float64.

    `scatter` is the sum of squared deviations, or of their outer products where the features are few.
    """

    count: Float[Tensor, ""]
    mean: Float[Tensor, " features"]
    scatter: Float[Tensor, " features"] | Float[Tensor, "features features"]


def moments(rows: Float[Tensor, "rows features"], crossed: bool) -> Moments:
    """Moments of one batch. Rows that hold a NaN or an infinity are left out, so that one bad row spoils nothing."""
    rows = rows.to(_wide(rows.device))
    whole = torch.isfinite(rows).all(1, keepdim=True)
    count = whole.sum().to(rows.dtype)
    rows = torch.where(whole, rows, 0)
    mean = rows.sum(0) / count.clamp(min=1)
    centred = torch.where(whole, rows - mean, 0)
    return Moments(count, mean, centred.T @ centred if crossed else centred.square().sum(0))


def merge(a: Moments, b: Moments) -> Moments:
    count = a.count + b.count
    gap = b.mean - a.mean
    outer = torch.outer(gap, gap) if a.scatter.dim() == 2 else gap.square()
    weight = b.count / count.clamp(min=1)
    return Moments(count, a.mean + gap * weight, a.scatter + b.scatter + outer * (a.count * weight))


def deviations(m: Moments) -> Float[Tensor, " features"]:
    variance = m.scatter.diagonal() if m.scatter.dim() == 2 else m.scatter
    return (variance / m.count.clamp(min=1)).clamp(min=0).sqrt()


def correlation(m: Moments) -> Float[Tensor, "features features"]:
    """Correlation matrix; a constant feature is given the unit row, so that it neither helps nor hurts."""
    spread = m.scatter.diagonal().clamp(min=0).sqrt()
    varies = spread > 1e-12 * (spread.amax() + 1e-300)
    scaled = m.scatter / torch.outer(spread, spread).clamp(min=1e-300)
    both = torch.outer(varies, varies)
    return torch.where(both, scaled, torch.eye(len(spread), dtype=scaled.dtype, device=scaled.device))


def nonfinite_share(rows: Float[Tensor, "rows features"]) -> Float[Tensor, " features"]:
    return (~torch.isfinite(rows)).float().mean(0)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


# -- symmetry ---------------------------------------------------------------------------------------------------------


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


def softmax_rows(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "rows classes"]:
    """The rows a softmax over `dim` normalizes."""
    moved = x.movedim(dim, -1)
    return moved.reshape(-1, moved.shape[-1])


def attention_probabilities(
    q: Float[Tensor, "rows dim"],
    k: Float[Tensor, "rows keys dim"],
    scale: float,
    mask: Float[Tensor, "rows keys"] | None,
) -> tuple[Float[Tensor, "rows keys"], Float[Tensor, "rows keys"]]:
    """Logits and softmax of a few attention rows; `mask` is added to the logits, -inf where a key is out of reach."""
    logits = torch.einsum("rd,rkd->rk", q.float(), k.float()) * scale
    logits = logits if mask is None else logits + mask
    return logits, torch.softmax(logits, dim=-1)
