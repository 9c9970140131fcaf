"""How far one batch's curvature can be trusted: its vectors tried on the independent batches that follow.

The largest eigenvalue of one batch is biased up and the smallest down (Jensen). Rayleigh quotients of its eigenvectors
on other batches are biased the other way, so both together bracket the truth, and a mean quotient below zero by two
standard errors is a valid one-sided test for negative curvature. The weights may move by a few updates meanwhile.

Mini-batches also make curvature noise. With momentum a direction of mean curvature a is stable in mean square only if

    eta F(-1) a / 2  +  eta F(1) s^2 / (2 a)  <  1,     s^2 = E|H_B v|^2 - |E H_B v|^2,

a with weight decay in it where that is coupled, and both at P^-1/2 H P^-1/2 where there is a preconditioner. Groups of
several rates have eta F(1) in their P: along u = R^1/2 w, w the eigenvector of s, the terms are

    u'(H + W) u / w'w  and  (E u'H_B D H_B u - u'H D H u) / (2 u'(H + W) u),     D = eta F(1) / P.

The budget is exact in one dimension for SGD and heavy ball (mu = 0: Wu, Ma & E, NeurIPS 2018; its two limits are the
plateaus of arXiv 2604.14108) and never optimistic on Gaussian designs; for adaptive optimizers, in their coordinates,
it is advisory only: rarely updated weights have a large eta / P.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.distributed import Ranks, hessian_of, ranks_of
from diagnostics.curvature.errors import CurvatureError
from diagnostics.curvature.estimate import Estimate
from diagnostics.curvature.layout import Closure, Layout, Matvec
from diagnostics.curvature.scaling import Scaling

# Entries that stand for a vector of which only inner products are wanted: 16 MiB for all batches. A prime, so that one
# large column of a weight matrix is not added up in a few of them.
FOLDED = 262_139
STEEP = 100.0  # directions that curve this many times less than the steepest count as flat
EXACT = 0.1  # residual over value of an eigenvalue that bounds the curvature of all that are not listed


@dataclass(frozen=True)
class Quotients:
    """One independent batch. Its vectors are folded to `FOLDED` entries each, so that memory does not grow with n."""

    largest: float  # v1' H_B v1
    smallest: float  # vn' H_B vn
    curvature: float  # v' B v of the preconditioned Hessian B at the top eigenvector v of the estimate's; or s along u
    product: Tensor  # (min(n, FOLDED),) B v; or (eta F(1) / P)^1/2 H_B u
    gradient: Tensor  # (min(n, FOLDED),)
    along: np.ndarray  # (k,) the gradient along each of the estimate's eigenvectors
    ranks: Ranks | None = None


def follow(closure: Closure, model: nn.Module, estimate: Estimate) -> Quotients:
    """One graph and two products on the batch of `closure`; three if P is not 1, or groups differ in rate."""
    layout = Layout(estimate.parameters)
    ranks = ranks_of(model, layout)
    estimate = estimate.to(layout.device)
    scale, top = estimate.scaling, estimate.preconditioned_vector
    if scale is None or top is None or estimate.vectors is None or estimate.smallest_vector is None:
        raise CurvatureError("only the vectors of a full estimate can be followed")

    def dot(a: Tensor, b: Tensor) -> float:
        return _dot(a, b, ranks)

    with undisturbed(model, closure, layout.parameters):
        hessian = hessian_of(closure, model, layout, ranks, estimate.method == "differences")
        largest, smallest = estimate.vectors[0], estimate.smallest_vector
        product = hessian(largest)
        curvature, spread = _budget(estimate, scale, hessian, product, dot)
        return Quotients(
            largest=dot(largest, product),
            smallest=dot(smallest, hessian(smallest)),
            curvature=curvature,
            product=folded(spread, FOLDED),
            gradient=folded(hessian.gradient, FOLDED),
            along=_along(estimate.vectors, hessian.gradient, ranks),
            ranks=ranks,
        )


def _budget(
    estimate: Estimate, scale: Scaling, hessian: Matvec, product: Tensor, dot: Callable[[Tensor, Tensor], float]
) -> tuple[float, Tensor]:
    """`curvature` and `product` of one batch, whose product with the top eigenvector of the Hessian is known.

    Where s is not the preconditioned eigenvalue up to a factor (groups of several rates, maximization, weight decay
    before an adaptive P), both are those of the direction u that grows first.
    """
    growing, top = estimate.growing_vector, estimate.preconditioned_vector
    assert estimate.vectors is not None and top is not None
    if growing is not None:
        product = hessian(growing)
        return dot(growing, scale.sign * product + scale.coupled * growing), scale.pushed(product)
    if scale.plain:
        return dot(estimate.vectors[0], product), product
    product = scale.preconditioned(hessian)(top)
    return dot(top, product), product


def combine(batches: Sequence[Quotients], estimate: Estimate, averaged: int = 1) -> dict[str, float | int]:
    """The row for table `batches`, without `step` and `origin`. Errors need two batches, a noise term too. `averaged`:
    an update's gradient is the mean over so many such batches, which have as much less noise."""
    factor, shift, constant = _factors(estimate)
    largest, largest_error = _mean([b.largest for b in batches])
    smallest, smallest_error = _mean([b.smallest for b in batches])
    curvature, curvature_error = _mean([b.curvature for b in batches])
    products = _gram([b.product for b in batches], batches[0].ranks)
    gradients = _gram([b.gradient for b in batches], batches[0].ranks)
    noise, noise_error = _jackknife(
        lambda keep: _noise(products, keep, [b.curvature + shift for b in batches], constant / averaged), len(batches)
    )
    square, square_error = _jackknife(lambda keep: _between(gradients, keep), len(batches))
    gains, curvatures = _flat_gains(batches, gradients, estimate)
    gain, gain_error = _jackknife(lambda keep: math.fsum(_between(each, keep) for each in gains), len(batches))
    return {
        "batches": len(batches),
        "largest": largest,
        "largest_error": largest_error,
        "smallest": smallest,
        "smallest_error": smallest_error,
        "curvature_term": factor * (curvature + shift),
        "curvature_term_error": factor * curvature_error,
        "noise_term": noise,
        "noise_term_error": noise_error,
        "gradient_square": square,
        "gradient_square_error": square_error,
        "gradient_noise": (float(np.trace(gradients)) / len(batches) + (averaged - 1) * square) / averaged,
        "flat_gain": gain if gains else math.nan,
        "flat_gain_error": gain_error if gains else math.nan,
        "flat_curvature": _weighted(curvatures, [_between(each, np.arange(len(batches))) for each in gains]),
    }


def _flat_gains(
    batches: Sequence[Quotients], gradients: np.ndarray, estimate: Estimate
) -> tuple[list[np.ndarray], list[float]]:
    """For each direction flatter than 1 / `STEEP` of the steepest, g g' / (2 lambda) between the batches: the decrease
    that the quadratic picture still holds there. And the curvatures.

    H is diagonal in Ritz vectors, whether or not they have converged. All directions that are not listed count as one,
    with the curvature of the steepest flat one, which none of them exceeds once that one has converged.
    """
    values, residuals = np.asarray(estimate.eigenvalues), np.asarray(estimate.residuals)
    along = np.stack([b.along for b in batches])
    if not len(values) or not values[0] > 0:
        return [], []
    flat = np.flatnonzero((values < values[0] / STEEP) & (values > values[0] * np.finfo(np.float32).eps))
    gains = [np.outer(along[:, i], along[:, i]) / (2 * values[i]) for i in flat]
    curvatures = [float(values[i]) for i in flat]
    if len(flat) and residuals[flat[0]] <= EXACT * values[flat[0]]:
        gains.append((gradients - along @ along.T) / (2 * values[flat[0]]))
        curvatures.append(curvatures[0])
    return gains, curvatures


def _along(vectors: Tensor, gradient: Tensor, ranks: Ranks | None) -> np.ndarray:
    products = vectors @ gradient.to(vectors.dtype)
    return (ranks.total(products) if ranks else products).cpu().double().numpy()  # host sync


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    kept = np.clip(np.asarray(weights, dtype=float), 0, None)
    return float(np.average(values, weights=kept)) if kept.sum() > 0 else math.nan


def folded(v: Tensor, size: int) -> Tensor:
    """Entries with random signs, the same for every vector, added up in `size` sums: inner products are unbiased, and
    off by |a| |b| (2 / size)^1/2, or 0.3 %, where those of two batches differ by more. No change up to that length."""
    if len(v) <= size:
        return v
    generator = torch.Generator(v.device).manual_seed(len(v))
    sums = torch.zeros(size, dtype=v.dtype, device=v.device)
    for piece in v.split(size):
        signs = torch.randint(0, 2, piece.shape, generator=generator, device=v.device, dtype=torch.int8)
        sums[: len(piece)] += piece * (2 * signs - 1)
    return sums


def _factors(estimate: Estimate) -> tuple[float, float, float]:
    """c, w and b of the budget c (a + w) + b s^2 / (2 (a + w)): all are in a and s^2 already along u."""
    scale = estimate.scaling
    assert scale is not None
    return (scale.factor, scale.shift, scale.constant) if estimate.growing_vector is None else (1.0, 0.0, 1.0)


def _noise(gram: np.ndarray, keep: np.ndarray, curvatures: Sequence[float], constant: float) -> float:
    """eta F(1) s^2 / (2 (a + w)), with the unbiased s^2 of independent products."""
    mean = float(np.asarray(curvatures)[keep].mean())
    spread = float(np.trace(gram[np.ix_(keep, keep)])) / len(keep) - _between(gram, keep)
    return constant * spread / (2 * mean) if mean > 0 else math.nan


def _between(gram: np.ndarray, keep: np.ndarray) -> float:
    """Mean inner product of different batches' vectors: the unbiased square of their mean."""
    block, k = gram[np.ix_(keep, keep)], len(keep)
    with np.errstate(invalid="ignore"):  # of a run that diverges
        return float(block.sum() - np.trace(block)) / (k * (k - 1)) if k > 1 else math.nan


def _jackknife(statistic: Callable[[np.ndarray], float], k: int) -> tuple[float, float]:
    """The statistic and its standard error from leaving each batch out in turn (three batches at least)."""
    everything = np.arange(k)
    with np.errstate(invalid="ignore", over="ignore"):  # of a run that diverges
        whole = statistic(everything)
        if k < 3 or not math.isfinite(whole):
            return whole, math.nan
        parts = np.array([statistic(np.delete(everything, i)) for i in range(k)])
        return whole, float(math.sqrt((k - 1) * parts.var()))


def _gram(vectors: Sequence[Tensor], ranks: Ranks | None) -> np.ndarray:
    k = len(vectors)
    gram = np.zeros((k, k))
    for i in range(k):
        for j in range(i + 1):
            gram[i, j] = gram[j, i] = _dot(vectors[i], vectors[j], ranks)
    return gram


def _dot(a: Tensor, b: Tensor, ranks: Ranks | None) -> float:
    product = torch.dot(a, b)
    return float(ranks.total(product) if ranks else product)  # host sync


def _mean(values: Sequence[float]) -> tuple[float, float]:
    x = np.asarray(values, dtype=float)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
