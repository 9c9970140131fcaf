"""What activation functions do to their units: inactive, flat, saturated; and softmax, by its entropy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from diagnostics.stats.norms import wide

FLAT = 0.05  # a unit is flat where its derivative is below this share of the activation's maximum
GELU_OFF, SILU_OFF = -3.1, -6.5  # below, the derivative is under 1 % of its maximum: counted as inactive


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
    Kind("gelu", lambda x: _gelu_slope(x) / 1.1289, lambda x: x < GELU_OFF),
    Kind("silu", lambda x: _silu_slope(x) / 1.0998, lambda x: x < SILU_OFF),
    Kind("mish", lambda x: _mish_slope(x) / 1.0885, lambda x: x < SILU_OFF),
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
    sums = [moment.sum(dtype=wide(moment.device)) for moment in moments]
    sums += [torch.full_like(sums[0], torch.nan), torch.full_like(sums[0], inputs.numel())]
    return UnitCounts(inputs.shape[1], len(inputs), active, (slope < FLAT).sum(0), torch.stack(sums), inputs.amax())


def count_softmax(
    logits: Float[Tensor, "rows classes"],
    p: Float[Tensor, "rows classes"],
    reachable: Float[Tensor, " rows"] | None = None,
) -> UnitCounts:
    """A softmax is flat in a row whose normalized entropy is below `FLAT`; every class shares the row's count.

    `reachable`: number of classes a mask leaves to each row, if the logits do not hold it as -inf; rows with fewer
    than two are not counted.
    """
    p, logits = p.detach().float(), logits.detach().float()
    width = (logits > -torch.inf).sum(-1).float() if reachable is None else reachable
    counted = width >= 2
    entropy = torch.where(counted, torch.special.entr(p).sum(-1) / width.clamp(min=2).log(), 0)
    flat, rows = (counted & (entropy < FLAT)).sum(), counted.sum()
    finite = torch.where(torch.isfinite(logits), logits, 0)
    # so that over all entries it gives the mean of the rows counted; unknown where none had a choice
    spread = torch.where(rows > 0, entropy * (p.numel() / rows.clamp(min=1)), torch.nan)
    entries = (finite, finite.square(), p, p.square(), p == 0, torch.ones_like(p), spread)
    sums = [entry.sum(dtype=wide(p.device)) for entry in entries]
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
