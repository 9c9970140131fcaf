"""Updates that go up the gradient, by an optimizer or a loop that is written by hand.

Momentum goes uphill too, where it swings back, but on average it goes down; a decay of the weights that the loss holds
up stands across the gradient rather than along it.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._far_targets import COMPARISONS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

ERRORS = {*COMPARISONS, "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"}


def uphill(
    run: Run,
    *,
    measured: int = 5,
    along: float = 0.3,  # cosine of update and gradient; of hundreds of weights at random it is a hundredth
    nearly_all: float = 0.8,  # of the updates; what has blown up turns about
) -> Iterator[Finding]:
    history = signals.loss(run)
    table = run.table("scalars", ["step", "slope", "grad_norm", "update_norm"])
    slopes, gradients, lengths = (signals.array(table, name) for name in ("slope", "grad_norm", "update_norm"))
    cosines = slopes / (gradients * lengths)
    steps, cosines = table["step"].to_numpy()[np.isfinite(cosines)], cosines[np.isfinite(cosines)]
    grew = signals.first_nonfinite(run) is not None or history.end > history.start
    if len(cosines) < measured or not grew or optimizer.hyperparameter(run, "maximize", False):
        return
    cosine = signals.median(cosines)
    if not ((cosines > 0).mean() >= nearly_all and cosine > along):
        return
    is_error = signals.loss_calls(run)[-1] in ERRORS or run.meta.get("guessing")
    told = found(
        "uphill",
        int(steps[cosines > 0][0]),
        (),
        (
            f"The updates go up the gradient, not down: at {int((cosines > 0).sum())} of {len(cosines)} measured "
            f"updates the weights moved along it (cosine {number(cosine)}), and the loss grows."
        ),
        {"cosine of update and gradient": cosine, "measured updates": float(len(cosines))},
        (
            "look at the signs in the optimizer's step: p.sub_(lr * grad), p.add_(velocity, alpha=-lr); with Nesterov "
            "momentum p - lr * (grad + mu * velocity)",
            "where the loss is to grow, as a reward, watch its negative, or give the optimizer maximize=True",
        ),
        r"\mathcal{J}(\theta + u) \approx \mathcal{J}(\theta) + \nabla\mathcal{J}^\top u,\quad "
        r"\nabla\mathcal{J}^\top u > 0",
        severity="critical" if is_error or signals.first_nonfinite(run) is not None else "info",
    )
    yield replace(told, charts=(Chart("line", "scalars", ("loss",), "Loss", log=True), *told.charts[1:]))
