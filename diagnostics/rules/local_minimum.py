r"""At a local minimum, as far as can be seen.

## What it is
The gradient is zero within its noise and no direction curves clearly downwards: nearby, nothing is better.

## What we look at
The last part of the run: a loss that does not move; a gradient that cannot be told from its own noise, or has
shrunk to a thousandth of what it was; a smallest eigenvalue that is not clearly negative.

## Why it happens
If $\nabla\mathcal J(\theta_*) = 0$ and $\mathbf H(\theta_*)$ is positive definite, then $\theta_*$ is a local
minimum: all directions curve upwards. For a linear model with a convex loss there are no others than global ones.
A network with hidden units has permutation symmetries and cannot be convex: whether the minimum is global cannot
be known.

## What to try
If the loss is good enough, stop. If not, the model is too small, the data too noisy, or another start finds a lower
minimum: train again with another seed and compare.

## When this is wrong
Zero eigenvalues are common, and along them the loss may still fall at higher order. Curvature is measured on
batches.

## In the lecture
*Local Minima*, *Convex Functions*, and the review of the Hessian (positive definite at a critical point).
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._weight_scales import stands_still
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

KIND = "local-minimum"
RANK = 15


def check(
    run: Run,
    *,
    gone: float = 1e-3,  # of the largest gradient norm: what is left to gain is a millionth in the quadratic picture
    little: float = 0.05,  # of the loss: what the quadratic picture promises for going on
    slightly: float = 0.05,  # of the largest eigenvalue, the same as for saddle points
) -> Iterator[Finding]:
    history = signals.loss(run)
    table = signals.curvature(run)
    table = table.loc[table["smallest"].notna()]
    if history.count < 20 or table.empty:
        return
    late = history.values[-max(10, history.count // 5) :]
    settled = signals.trend(late)
    if history.end > history.start + history.noise:
        return  # where it settled is no place to stop
    if not np.isfinite(late).all() or (settled.z > 3 and settled.relative > 0.01):
        return
    found = _gradient(run, gone)
    top, condition = float(signals.tops(table)[-1]), signals.latest(run, "curvature", "condition")
    smallest, residual = (float(signals.array(table, name)[-1]) for name in ("smallest", "smallest_residual"))
    if found is None or not top > 0 or smallest + 2 * residual < -slightly * top or stands_still(run, history, table):
        return
    gradient, small = found
    if _left_to_gain(gradient, top, condition, smallest) > max(little * abs(history.end), gone**2 * abs(history.start)):
        return
    linear = bool(run.meta["linear_model"])
    known = (
        "The model is linear in its parameters: with a convex loss this minimum is the global one."
        if linear
        else "Whether it is the global one cannot be known: only of a convex loss is every minimum global."
    )
    yield Finding(
        kind=KIND,
        cause=None,
        severity="info",
        first_step=int(history.steps[-len(late)]),
        last_step=None,
        layers=(),
        summary=(
            f"The loss has settled at {number(history.end)}, {small} and no direction curves "
            f"clearly downwards (the eigenvalues reach from {number(smallest)} to {number(top)}): a local "
            f"minimum. {known}"
        ),
        evidence={
            "loss": history.end,
            "gradient norm": gradient,
            "smallest eigenvalue": smallest,
            "largest eigenvalue": top,
        },
        remedies=(
            "stop here if the loss is good enough",
            "else train again from another seed, or with a larger model, and compare",
        ),
        charts=(
            GRADIENT_NORM,
            Chart("spectrum", "curvature", ("eigenvalues", "smallest"), "Largest and smallest eigenvalues"),
        ),
        formula=(
            rf"\nabla\mathcal{{J}} \approx 0, \quad \lambda_{{\min}} = {tex(smallest)}, \quad "
            rf"\lambda_{{\max}} = {tex(top)}"
        ),
    )


def _left_to_gain(gradient: float, top: float, condition: float, smallest: float) -> float:
    """|g|^2 / (2 lambda): the fall that is left in the flattest direction whose upward curvature was measured."""
    along = max(top / condition, top * np.finfo(np.float32).eps) if condition > 0 else top
    upward = [each for each in (top, along, smallest) if each > 0]
    return float(gradient**2 / (2 * min(upward))) if upward else np.inf


def _gradient(run: Run, gone: float) -> tuple[float, str] | None:
    """The gradient norm, and in words how small, if it is zero within its noise (independent batches) or shrunk to
    nothing, else `None`."""
    norms = signals.whole_norms(run)[1]  # clipping makes no minimum
    norms = norms[np.isfinite(norms)]
    if not len(norms):
        return None
    now, largest = float(np.median(norms[-max(3, len(norms) // 20) :])), float(norms.max())
    square, error = (
        signals.latest(run, "batches", "gradient_square"),
        signals.latest(run, "batches", "gradient_square_error"),
    )
    significant = np.isfinite(square) and np.isfinite(error) and square >= 2 * error
    if np.isfinite(square) and error > 0 and not significant:
        return now, f"the gradient is zero within its noise ({number(now)})"
    vanished = now <= (gone**2 if significant else gone) * largest
    return (now, f"the gradient has shrunk from {number(largest)} to {number(now)}") if vanished else None
