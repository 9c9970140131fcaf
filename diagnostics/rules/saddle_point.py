r"""Held up at a saddle point.

## What it is
A point where the gradient is (nearly) zero although it is no minimum: the loss curves upwards in some directions
and downwards in others. Progress stops until the weights have drifted far enough along a downward direction.

## What we look at
A stretch in which the loss does not move although it is not at its floor, while the smallest eigenvalue of the
Hessian is clearly negative - beyond twice its residual, and beyond twice its standard error on independent
batches - and the gradient is small against what this curvature makes of it within one weight norm:
$\|\nabla\mathcal J\| \ll |\lambda_{\min}|\,\|\theta\|$. The time to escape, $\tau = 1/(\eta\,|\lambda_{\min}|)$
updates a factor $e$, must fit the stretch.

## Why it happens
At a critical point $\mathcal J(\theta) \approx \mathcal J(\theta_0) + \tfrac12(\theta-\theta_0)^\top\mathbf
H(\theta-\theta_0)$. Along an eigenvector with $\lambda < 0$ gradient descent multiplies the distance from the
saddle by $1 + \alpha|\lambda|$ a step: exactly on it we are stuck, slightly to the side we get unstuck, but
slowly. Small initial weights in a deep net start near the saddle at the origin.

## What to try
Start farther away: larger initial weights (Kaiming or Xavier scale). A larger learning rate or momentum shortens
the escape in proportion. If units are identical, break the symmetry first.

## When this is wrong
Every network has slightly negative eigenvalues; they are silent unless the loss stands still. Where no curvature
estimate fell into the flat stretch, nothing is said.

## In the lecture
*Saddle points*.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._signals import number, tex
from diagnostics.run import Run

KIND = "saddle-point"
RANK = 9


def check(
    run: Run,
    *,
    longest: float = 0.2,  # of the run, without progress: shorter waits cost less than a fifth
    clearly: float = 0.05,  # of the largest eigenvalue; trained networks have -0.01 of it everywhere
    reach: float = 0.3,  # gradient over |smallest| times weight norm: at most 1/(depth - 1) near a deep net's origin
    patience: float = 30.0,  # escape times; rounding errors alone have grown to order one by then
) -> Iterator[Finding]:
    signals.curvature(run)
    history = signals.loss(run)
    stretch = signals.flat(run)
    if stretch is None or stretch.share < longest or history.count < 20 or _at_floor(history, stretch):
        return
    found = _negative(run, stretch, clearly)
    if found is None:
        return
    step, smallest, residual, largest = found
    gradient, weights = _norms(run, stretch)
    small = gradient <= reach * abs(smallest) * weights if np.isfinite(weights) else gradient == 0
    escape = _escape_steps(run, smallest)
    waited = stretch.last_step - stretch.first_step + 1
    if not small or not (escape <= waited <= patience * escape or gradient == 0):
        return
    rate = signals.last_rate(run)
    yield Finding(
        kind=KIND,
        cause=None,
        severity="warning",
        first_step=stretch.first_step,
        last_step=stretch.last_step if stretch.escaped else None,
        layers=(),
        summary=(
            f"From step {stretch.first_step} to {stretch.last_step} the loss stood at "
            f"{number(stretch.level)} with a gradient norm of {number(gradient)}, "
            f"while the smallest eigenvalue was {number(smallest)}: a saddle point, left at a factor e every "
            f"{number(escape)} updates."
        ),
        evidence={
            "smallest eigenvalue": smallest,
            "residual": residual,
            "largest eigenvalue": largest,
            "gradient norm": gradient,
            "loss": stretch.level,
            "escape updates": escape,
            "measured at step": float(step),
        },
        remedies=(
            "start with larger random weights: torch.nn.init.kaiming_normal_ (or xavier_normal_) on every layer",
            (
                f"raise the learning rate from {number(rate)}, or use momentum 0.9: the escape gets faster in "
                "proportion to the rate over 1 - momentum"
            ),
        ),
        charts=(
            Chart("spectrum", "curvature", ("eigenvalues", "smallest"), "Largest and smallest eigenvalues"),
            Chart("line", "scalars", ("loss",), "Loss"),
            Chart("line", "scalars", ("grad_norm",), "Gradient norm", log=True),
        ),
        formula=(
            rf"\nabla\mathcal{{J}} \approx 0 \;(\|\nabla\mathcal{{J}}\| = {tex(gradient)}), \quad "
            rf"\lambda_{{\min}} = {tex(smallest)} < 0 < \lambda_{{\max}} = {tex(largest)}"
        ),
    )


def _at_floor(history: signals.Loss, stretch: signals.Flat) -> bool:
    """Level at the lowest the run reached, after most of the fall from its start: converged, as far as the run
    shows."""
    fell = history.start - history.best
    return not stretch.escaped and fell > 0.5 * abs(history.start) and stretch.level - history.best <= 0.1 * fell


def _negative(run: Run, stretch: signals.Flat, clearly: float) -> tuple[int, float, float, float] | None:
    """Step, smallest eigenvalue, its residual and the largest, at the clearest estimate of the stretch."""
    table = signals.curvature(run)
    table = table.loc[table["step"].between(stretch.first_step, stretch.last_step) & table["smallest"].notna()]
    if table.empty:
        return None
    top, smallest = signals.tops(table), signals.array(table, "smallest")
    residual = signals.array(table, "smallest_residual")
    sure = (smallest + 2 * residual < 0) & (np.abs(smallest) >= clearly * np.fmax(top, 0)) & _confirmed(run, table)
    if not sure.any():
        return None
    at = int(np.flatnonzero(sure)[np.argmin(smallest[sure])])
    return int(table["step"].iloc[at]), float(smallest[at]), float(residual[at]), float(top[at])


def _confirmed(run: Run, table: pd.DataFrame) -> np.ndarray:
    """Negative on independent batches too, where they were tried."""
    tried = run.table("batches", ["origin", "smallest", "smallest_error"]).set_index("origin")
    upper = (tried["smallest"] + 2 * tried["smallest_error"]).to_dict()
    return np.array([not upper.get(step, -1.0) >= 0 for step in table["step"]])


def _norms(run: Run, stretch: signals.Flat) -> tuple[float, float]:
    gradient = signals.inside(run, "grad_norm", stretch.first_step, stretch.last_step)
    weights = signals.inside(run, "weight_norm", stretch.first_step, stretch.last_step)
    return (float(np.median(gradient)) if len(gradient) else np.nan), (
        float(np.median(weights)) if len(weights) else np.nan
    )


def _escape_steps(run: Run, smallest: float) -> float:
    """Updates in which the distance from the saddle grows by a factor e, at the gain for a constant gradient.

    For adaptive optimizers the gain is read off the steepest direction's `progress`, which includes the preconditioner.
    """
    table = signals.curvature(run)
    gain = signals.array(table, "progress") / signals.tops(table)  # eta F(1) / P
    gain = gain[np.isfinite(gain) & (gain > 0)]
    per_step = (float(np.median(gain)) if len(gain) else signals.last_rate(run)) * abs(smallest)
    return 1 / np.log1p(per_step) if per_step > 0 else np.inf


def explains(finding: Finding, other: Finding) -> bool:
    return other.kind in {"plateau", "lr-too-small", "local-minimum", "ravine"}
