"""The ends of the Hessian's spectrum, and what a cold start's random vector reveals of the rest."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diagnostics.curvature.lanczos import Krylov
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.quadrature import density
from diagnostics.curvature.request import Request
from diagnostics.curvature.runs import RANDOM_SHARE, Solver, hidden, missed_above
from diagnostics.curvature.solve import Target


def spectrum(request: Request, hessian: Hessian, solver: Solver) -> tuple[Krylov, dict[str, Any]]:
    """The ends of the Hessian's spectrum, and from a cold start what the random vector reveals."""
    target, previous = request.target, request.previous
    krylov = solver.basis(hessian, target.largest + 1)
    columns: dict[str, Any] = {}
    if request.cold or previous is None or previous.vectors is None or previous.smallest_vector is None:
        krylov.extend(solver.random())
        ritz = solver.run(krylov, target)
        columns["missed"] = hidden(krylov.chain, krylov.dimension, ritz, target)
        columns |= _density(krylov)
        if previous is None or previous.vectors is None or previous.copies:
            columns["copies"] = solver.find_copies(krylov, target)
    else:
        krylov.extend(solver.warm(*previous.vectors, previous.smallest_vector))
        ritz = solver.run(krylov, target)
        columns["missed"] = missed_above(krylov, ritz.values[0], target.tolerance, RANDOM_SHARE)
    return krylov, columns | _ends(krylov, target, hessian.gradient)


def _density(krylov: Krylov) -> dict[str, Any]:
    if krylov.restarted:  # the chain was cut: its Ritz values are no longer a quadrature
        return {}
    found = density(krylov.ritz(), krylov.dimension)
    return {
        "trace": found.trace,
        "trace_error": found.trace_error,
        "frobenius": found.frobenius,
        "stable_rank": found.stable_rank,
        "density_nodes": found.nodes.tolist(),
        "density_weights": found.weights.tolist(),
    }


def _ends(krylov: Krylov, target: Target, gradient: Tensor) -> dict[str, Any]:
    ritz = krylov.ritz()
    top = slice(0, min(target.largest, len(ritz.values)))
    vectors = krylov.vectors(ritz.coefficients[:, np.r_[top, len(ritz.values) - 1]])
    inside = (krylov.project(gradient) @ ritz.coefficients[:, top]) ** 2
    square = float(krylov.total(torch.dot(gradient, gradient)))
    return {
        "eigenvalues": ritz.values[top].tolist(),
        "residuals": ritz.residuals[top].tolist(),
        "smallest": float(ritz.values[-1]),
        "smallest_residual": float(ritz.residuals[-1]),
        "vectors": vectors[:-1],
        "smallest_vector": vectors[-1],
        "gradient_alignment": float(inside.sum()) / square if square > 0 else math.nan,
    }
