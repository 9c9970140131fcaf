"""What a random start vector reveals beyond the eigenvalues: trace, norm, density, and the chance of a miss.

The chain of recurrence coefficients (alpha_j, beta_j) of a start vector z is the Gauss quadrature of the measure
sum_i (z'x_i)^2 delta(lambda_i): Golub & Meurant 2010; for networks Ghorbani et al., arXiv 1901.10159.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diagnostics.curvature.lanczos import Ritz
from diagnostics.curvature.multiplicity import multiplicities

NULL = 1e-4  # of the largest size: a value below this may be the null space, which is repeated and adds nothing
Chain = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Density:
    """From one cold start."""

    nodes: np.ndarray  # (m,) descending
    weights: np.ndarray  # (m,) sum 1
    trace: float
    trace_error: float  # standard error
    frobenius: float
    stable_rank: float
    repeated: bool  # a converged value has a weight that a simple eigenvalue hardly ever has


def density(ritz: Ritz, dimension: int, tolerance: float = 1e-2, simple: bool = True) -> Density:
    """From the Ritz pairs of a chain whose start z was random with E[z z'] = 1.

    Hutchinson's estimates are sum(counts * f(nodes)) with counts = dimension * weights, of variance 2 * counts. The
    count of a converged value is its multiplicity, which is nearly always 1 (unless it is known that eigenvalues are
    not `simple`): that removes most of the variance. All counts together are the dimension, so what shifts every
    eigenvalue shifts the trace with certainty.
    """
    weights = ritz.coefficients[0] ** 2
    counts, variances = dimension * weights, 2 * dimension * weights
    top, known = float(np.abs(ritz.values).max()), ritz.converged(tolerance)
    for i in np.flatnonzero(known) if simple else ():
        counts[i], variances[i] = multiplicities(float(counts[i]))
    repeated = bool((counts[known & (np.abs(ritz.values) > NULL * top)] > 2).any())
    share = variances / max(float(variances.sum()), 1e-30)
    counts += share * (dimension - counts.sum())
    centred = ritz.values - share @ ritz.values
    square = float(counts @ ritz.values**2)
    return Density(
        nodes=ritz.values,
        weights=weights,
        trace=float(counts @ ritz.values),
        trace_error=math.sqrt(variances @ centred**2),
        frobenius=math.sqrt(max(0.0, square)),
        stable_rank=square / top**2 if top > 0 else float("nan"),
        repeated=repeated,
    )


def missed(chain: Chain, value: float, dimension: int, share: float = 1.0) -> float:
    """Bound on the probability that an eigenvalue at or above `value` exists and the chain does not show it.

    An eigenvalue at x carries at most the mass 1 / sum_i p_i(x)^2 of the start's measure (Christoffel function; p_i the
    chain's orthonormal polynomials), and the start's random part, `share` of its length, has a normal component of
    variance share^2 / dimension along any eigenvector, whatever its fixed part.
    """
    if not math.isfinite(value):
        return float("nan")
    previous, current, total, last = 0.0, 1.0, 1.0, 0.0
    for alpha, beta in chain:
        if beta == 0.0 or total > 1e200:  # an invariant subspace: nothing else has a component
            return 0.0
        previous, current, last = current, ((value - alpha) * current - last * previous) / beta, beta
        total += current**2
    return _small_ball(total, dimension, share)


def _small_ball(total: float, dimension: int, share: float) -> float:
    """P(|x| <= total^-1/2) for x normal with deviation share / sqrt(dimension)."""
    return math.erf(math.sqrt(dimension / (2 * total)) / max(share, 1e-12))
