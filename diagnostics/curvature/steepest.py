"""The steepest direction as the optimizer sees it: the stability ratio, and how ill-conditioned the loss is."""

import math
from typing import Any

import torch
from torch import Tensor

from diagnostics.curvature.lanczos import Krylov
from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.request import Request
from diagnostics.curvature.runs import RANDOM_SHARE, Solver, flat_share, missed_above, quotient
from diagnostics.curvature.scaling import Scaling


def steepest(
    request: Request, hessian: Hessian, solver: Solver, scale: Scaling, krylov: Krylov | None
) -> dict[str, Any]:
    """The stability ratio, and how ill-conditioned the optimizer finds the loss."""
    columns: dict[str, Any] = {}
    if krylov is None or not scale.plain:
        krylov = solver.basis(scale.preconditioned(hessian))
        columns["missed"] = _find_top(request, solver, krylov)
    ritz = krylov.ritz()
    vector = krylov.vectors(ritz.coefficients[:, :1])[0]
    top, residual = float(ritz.values[0]), float(ritz.residuals[0])
    columns |= {"preconditioned": top, "preconditioned_residual": residual, "preconditioned_vector": vector}
    if not request.full and scale.plain:
        columns |= {"eigenvalues": [top], "residuals": [residual]}
    if scale.known:
        columns |= _stability(request, hessian, solver, scale, top, vector)
    if request.full:
        columns["flat_gradient_share"] = flat_share(krylov, scale.gradient(hessian.gradient))
    if request.displacement is not None:
        columns["condition"] = _condition(krylov, top, scale.into(request.displacement))
    return columns


def _find_top(request: Request, solver: Solver, krylov: Krylov, start: Tensor | None = None) -> float:
    """Run until the largest eigenvalue is found; returns the chance of having missed a larger one."""
    known = request.previous.preconditioned_vector if request.previous and not request.cold else start
    krylov.extend(solver.fresh() if known is None else solver.warm(known))
    share = 1.0 if known is None else RANDOM_SHARE
    ritz = solver.run_top(krylov, request.target.tolerance, share)
    return missed_above(krylov, ritz.values[0], request.target.tolerance, share)


def _stability(
    request: Request, hessian: Hessian, solver: Solver, scale: Scaling, top: float, vector: Tensor
) -> dict[str, Any]:
    """From the preconditioned eigenvalue where that is the same up to a factor, else from runs of their own."""

    def largest(krylov: Krylov) -> float:
        _find_top(request, solver, krylov, vector)
        return float(krylov.ritz().values[0])

    if math.isnan(scale.sign):
        return {}
    ratio = scale.factor * (top + scale.shift)
    if math.isnan(ratio):
        ratio = largest(solver.basis(scale.stability(hessian)))
    progress = scale.constant * top
    if math.isnan(progress) or scale.sign < 0:
        progress = largest(solver.basis(scale.moving(hessian)))
    return {"stability": ratio, "progress": progress, "limit": _limit(scale, ratio, top)}


def _limit(scale: Scaling, ratio: float, top: float) -> float:
    """At s = 1 the preconditioned eigenvalue may be 1 / factor, less what weight decay adds to it now."""
    if not scale.sign > 0:
        return math.nan
    return 1 / scale.factor - (ratio / scale.factor - top) if scale.factor else math.inf  # at rate 0 all is stable


def _condition(krylov: Krylov, top: float, displacement: Tensor) -> float:
    if float(krylov.total(torch.dot(displacement, displacement))) == 0:
        return math.nan
    along = quotient(krylov, displacement)
    return top / along if along > 0 else math.inf
