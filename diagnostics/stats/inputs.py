"""Means, deviations and correlations of input features, batch by batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diagnostics.stats.norms import wide


@dataclass(frozen=True)
class Moments:
    """Mean and centred second moment of the rows seen so far, mergeable (Chan, Golub, LeVeque 1983), in float64.

    `scatter` is the sum of squared deviations, or of their outer products where the features are few.
    """

    count: Float[Tensor, ""]
    mean: Float[Tensor, " features"]
    scatter: Float[Tensor, " features"] | Float[Tensor, "features features"]


def is_distribution(x: Float[Tensor, "*any"], dim: int) -> Bool[Tensor, ""]:
    """Whether the entries along a dimension are probabilities, everywhere: logits never sum to one by chance."""
    sums = x.sum(dim, dtype=torch.float32)
    return (x >= 0).all() & ((sums - 1).abs() <= 1e-3 + 2 * torch.finfo(x.dtype).eps).all()


def of_length_one(x: Float[Tensor, "*any"], dim: int) -> Bool[Tensor, ""]:
    """Whether all vectors along a dimension are, up to rounding."""
    slack = 1e-3 + 2 * torch.finfo(x.dtype).eps
    norms = torch.linalg.vector_norm(x, dim=dim, dtype=torch.promote_types(x.dtype, torch.float32))
    return ((norms - 1).abs() <= slack).all()


def pair_cosines(a: Float[Tensor, "rows features"], b: Float[Tensor, "rows features"]) -> Float[Tensor, " 3"]:
    """Mean cosine of each row of `a` with its own of `b`; of different rows of `a`; and of different rows of `b`."""
    units = [_directions(x) for x in (a, b)]
    return torch.stack([(units[0] * units[1]).sum(1).mean(), *(_mean_product(x) for x in units)])


def pair_likenesses(a: Float[Tensor, "rows features"], b: Float[Tensor, "rows features"]) -> Float[Tensor, " 3"]:
    """The same by distances, of rows of any length: one less the mean square of these over what that of vectors at
    right angles and as long would be. Of rows of length 1 it is their cosine."""
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    left, right = (x.square().sum(1).mean() for x in (a, b))
    return torch.stack([2 * (a * b).sum(1).mean() / (left + right), _mean_product(a) / left, _mean_product(b) / right])


def mean_cosine(x: Float[Tensor, "rows features"]) -> Float[Tensor, ""]:
    """Between different rows."""
    return _mean_product(_directions(x))


def _directions(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def _mean_product(x: Tensor) -> Tensor:
    """Of different rows."""
    return (x.sum(0).square().sum() - x.square().sum()) / (len(x) * (len(x) - 1))


def moments(rows: Float[Tensor, "rows features"], crossed: bool) -> Moments:
    """Moments of one batch. Rows that hold a NaN or an infinity are left out, so that one bad row spoils nothing."""
    rows = rows.to(wide(rows.device))
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


def middle_halves(rows: Float[Tensor, "rows features"]) -> Float[Tensor, " features"]:
    """How far apart the quartiles of each feature lie, in its standard deviations: 1.35 for normal numbers, 0 where
    half of the numbers are one and the same, NaN of a constant or what holds a NaN."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    low, high = torch.quantile(rows, rows.new_tensor([0.25, 0.75]), dim=0)
    return (high - low) / rows.std(0, correction=0)


def nonfinite_share(rows: Float[Tensor, "rows features"]) -> Float[Tensor, " features"]:
    return (~torch.isfinite(rows)).float().mean(0)
