r"""At the edge of stability.

## What it is
The sharpness has risen to the stability limit and stays there while the loss goes on falling, in steps that are no
longer all downhill. This is how full-batch training of networks normally proceeds; it is no fault.

## What we look at
The stability ratio: between 0.9 and 1.15 in most of the later estimates, with a loss that has fallen.

## Why it happens
Gradient descent drifts towards higher curvature until $\lambda_{\max} \approx 2/\alpha$. Beyond it the steepest
direction begins to oscillate, and the third-order terms of the loss answer by lowering the curvature: the
oscillation stabilizes itself. Adaptive optimizers do the same on the Hessian they see.

## What to try
Nothing is needed. A higher learning rate leads to flatter regions, a lower one follows the loss more closely.

## When this is wrong
On a quadratic the curvature cannot fall, so hovering near 1 there is luck, not self-stabilization.

## In the lecture
Not treated there; it is what its limit $\alpha < 2/\lambda_{\max}$ turns into when $\lambda_{\max}$ can move.
Source: Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability" (2021);
Damian et al. (2023)."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run

KIND = "edge-of-stability"
RANK = 14


def check(
    run: Run,
    *,
    low: float = 0.9,  # of the limit: measured hovering of full-batch runs is 0.9 to 1.15 for every optimizer tried
    high: float = 1.15,  # upper end of the same
    estimates: int = 3,  # one or two near the limit may be passing through
    mostly: float = 0.6,  # of the later estimates
) -> Iterator[Finding]:
    history = signals.loss(run)
    steps, ratios = signals.stability(run)
    if len(steps) < estimates or history.count < 20:
        return
    at_edge = (ratios >= low) & (ratios <= high)
    if not at_edge.any() or quadratic.exact(run):  # where the curvature cannot move, nothing settles at the limit
        return
    first = int(np.flatnonzero(at_edge)[0])
    later = at_edge[first:]
    if len(later) < estimates or later.mean() < mostly or not later[-estimates:].any():
        return
    since = history.after(int(steps[first]))
    if not history.end < history.start or signals.trend(since).drop <= 0:
        return
    yield Finding(
        kind=KIND,
        cause=None,
        severity="info",
        first_step=int(steps[first]),
        last_step=None,
        layers=(),
        summary=(
            f"Since step {int(steps[first])} the stability ratio hovers at "
            f"{number(float(np.median(ratios[first:])))} while the loss falls (to {number(history.end)}): "
            "the edge of stability, which is normal."
        ),
        evidence={
            "median stability ratio": float(np.median(ratios[first:])),
            "estimates": float(len(later)),
            "loss at end": history.end,
        },
        remedies=("nothing needs to change",),
        charts=(
            Chart("stability", "curvature", ("stability",), "Stability ratio against this optimizer's limits"),
            Chart("line", "scalars", ("loss",), "Loss", log=True),
        ),
        formula=r"\lambda_{\max} \to \frac{2}{\alpha} \;\Leftrightarrow\; s \to 1",
    )
