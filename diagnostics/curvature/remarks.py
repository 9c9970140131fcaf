"""Sentences that say what an estimate leaves out, or how far to trust it."""

import math

from torch import Tensor

from diagnostics.curvature.operators import Hessian
from diagnostics.curvature.scaling import Scaling

REPEATS = 1e-3  # spread of the loss from call to call: with more, eigenvalues are noisy, and differences nothing else


def remarks(hessian: Hessian, scale: Scaling, spread: float, defect: float) -> list[str]:
    """What a person should read with an estimate. `spread`: of the loss from call to call; `defect`: of symmetry."""
    found = []
    if hessian.method == "differences" and defect > 0.05:
        found.append(f"products by differences are asymmetric by {defect:.0%} and eigenvalues as uncertain")
    if hessian.constant:
        found.append("the loss does not depend on the parameters: all eigenvalues are 0")
    if hessian.low_precision:
        found.append("part of the forward runs in half precision: eigenvalues are good to about one per cent")
    if hessian.error > 0.05:
        found.append(f"products by differences are uncertain by about {hessian.error:.0%}")
    if isinstance(scale.preconditioner, Tensor) and bool(scale.preconditioner.isinf().any()):
        found.append("weights that never had a gradient are left out of the stability ratio")
    if spread > REPEATS:
        found.append(f"the closure returns another loss at each call (spread {spread:.1%}): eigenvalues are as noisy")
    return [*found, *_left_out(scale)]


def _left_out(scale: Scaling) -> list[str]:
    """Columns of this estimate that are not defined for the groups of this optimizer."""
    if not scale.known:
        return []
    if math.isnan(scale.sign):
        return ["no stability ratio: one parameter group maximizes and another minimizes, so no direction is steepest"]
    found = []
    if scale.sign < 0:
        found.append("no stability limit of an eigenvalue: the optimizer maximizes, and s is that of minus the loss")
    elif math.isnan(scale.about):
        found.append(
            "no stability limit of an eigenvalue: parameter groups differ in rate or momentum; s holds for all of them"
        )
    if math.isnan(scale.gain):
        found.append("no one gain for a constant gradient: parameter groups differ in momentum")
    return found
