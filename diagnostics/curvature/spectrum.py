"""The ends of the Hessian's spectrum, and what a cold start's random vector reveals of the rest."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diagnostics.curvature.deflation import deflated
from diagnostics.curvature.lanczos import Krylov
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.quadrature import Density, density
from diagnostics.curvature.request import Request
from diagnostics.curvature.runs import RANDOM_SHARE, Solver, hidden, missed_above
from diagnostics.curvature.solve import Target


def spectrum(request: Request, hessian: Hessian, solver: Solver) -> tuple[Krylov, dict[str, Any]]:
    """The ends of the Hessian's spectrum, and from a cold start what the random vector reveals."""
    target, previous = request.target, request.previous
    krylov = solver.basis(hessian, target.largest + 1)
    columns: dict[str, Any] = {"copies": previous is not None and previous.copies}
    if request.cold or previous is None or previous.vectors is None or previous.smallest_vector is None:
        krylov.extend(solver.random())
        ritz = solver.run(krylov, target)
        columns["missed"] = 0.0 if krylov.complete else hidden(krylov.chain, krylov.dimension, ritz, target)
        first = None if krylov.restarted else krylov.ritz()
        found = first and density(first, krylov.dimension)
        if previous is None or previous.vectors is None or previous.copies or (found and found.repeated):
            columns["copies"] = solver.find_copies(krylov, target)
        if columns["copies"] and first and krylov.restarted:  # repeated, how often is not known
            found = density(first, krylov.dimension, simple=False)
        columns |= _density(found, krylov)
    else:
        krylov.extend(solver.warm(*previous.vectors, previous.smallest_vector))
        ritz = solver.run(krylov, target)
        columns["missed"] = missed_above(krylov, ritz.values[0], target.tolerance, RANDOM_SHARE)
        if previous.copies:
            solver.find_copies(krylov, target, *previous.vectors)
    return krylov, columns | _ends(krylov, target, hessian.gradient)


def _density(found: Density | None, krylov: Krylov) -> dict[str, Any]:
    """Trace and norm from the whole spectrum where it is known, by the last start where there was more than one, else
    by the only one."""
    if found is None:  # the chain was cut: its Ritz values are no longer a quadrature
        return {}
    trace, error, frobenius, stable_rank = found.trace, found.trace_error, found.frobenius, found.stable_rank
    if krylov.complete or (len(krylov.starts) > 1 and krylov.chain_whole):
        values = krylov.ritz().values
        exact = float(values.sum()), 0.0, float(np.linalg.norm(values))
        trace, error, frobenius = exact if krylov.complete else deflated(krylov)
        top = float(np.abs(values).max())
        stable_rank = (frobenius / top) ** 2 if top > 0 else math.nan
    return {
        "trace": trace,
        "trace_error": error,
        "frobenius": frobenius,
        "stable_rank": stable_rank,
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
