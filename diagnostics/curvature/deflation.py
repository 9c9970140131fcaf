"""Trace and Frobenius norm from a random vector in the complement of a basis (Hutch++: Meyer et al., arXiv 2010.09649).

A converged eigenvalue tells nothing of how often it is repeated; a second start, independent of the first, sees what
the basis of the first left out, whatever the multiplicities.
"""

import math

import numpy as np

from diagnostics.curvature.lanczos import Krylov, eigh


def deflated(krylov: Krylov) -> tuple[float, float, float]:
    """Trace, its standard error and Frobenius norm, by the last start v, which must be normal.

    With V the p rows multiplied before and A = H in their complement, of d dimensions: tr H = tr V'HV + tr A. There
    d v'Av is an estimate of tr A, whose variance is 2 d / (d + 2) min over c of |A - c|^2; 2 d |Av - (v'Av) v|^2 is the
    unbiased estimate of that. Where a few vectors of A show that it is too small, it is what they show. v has no part
    in the vector that waited for a product. It counts as the rest does, and may be the steepest of it: rounding, over
    many products, turns it there.
    """
    matrix, p = krylov.projected[: krylov.size, : krylov.done], krylov.starts[-1]
    before, column, d = (matrix[:, :p] ** 2).sum(1), matrix[p:, p], krylov.dimension - p
    coupling, alpha, length = float(before[p:].sum()), float(column[0]), float(column @ column)
    variance = max(2 * d * (length - alpha**2), 2 * d / (d + 2) * _spread(matrix[p:, p:])) + coupling
    variance += float(np.abs(eigh(matrix[p : krylov.done, p:])[0]).max() - abs(alpha)) ** 2
    square = float(before[:p].sum()) + 2 * coupling + d * length
    return float(matrix[:p, :p].trace()) + d * alpha, math.sqrt(max(0.0, variance)), math.sqrt(square)


def _spread(rows: np.ndarray) -> float:
    """What the columns of A that are known contribute at least to |A - c|^2, whatever the number c."""
    known, outside = rows[: rows.shape[1]], rows[rows.shape[1] :]
    diagonal = known.diagonal()
    square = (known**2).sum() - (diagonal**2).sum() + ((diagonal - diagonal.mean()) ** 2).sum()
    return float(square + 2 * (outside**2).sum())
