"""Updates that go up the gradient, by an optimizer or a loop that is written by hand.

Momentum goes uphill too, where it swings back, but on average it goes down. A decay of weights that the loss holds up
may go uphill for long, and an ascent in some of them for ever: where the optimizer has a decay nothing is told, and
where the loss grew by little it is information.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._far_targets import COMPARISONS
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

ERRORS = {*COMPARISONS, "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"}
DECAYS = ("weight_decay", "decay", "wd", "lambd", "l2")


def uphill(
    run: Run,
    *,
    measured: int = 5,
    along: float = 0.5,  # cosine of update and gradient, 60 degrees: it is most of what the update does
    nearly_all: float = 0.8,  # of the updates; what has blown up turns about
    much: float = 10.0,  # times the first loss
) -> Iterator[Finding]:
    history, lost = signals.loss(run), signals.first_nonfinite(run) is not None
    if not (lost or history.end > history.start) or _is_meant(run):
        return
    steps, cosines = _cosines(run)
    up = cosines > 0
    cosine = signals.median(cosines)
    if len(cosines) < measured or not (up.mean() >= nearly_all and cosine > along):
        return
    is_error = signals.loss_calls(run)[-1] in ERRORS or run.meta["guessing"]
    told = found(
        "uphill",
        run,
        (
            f"The updates go up the gradient, not down: at {int(up.sum())} of {len(cosines)} measured updates the "
            f"weights moved along it (cosine {number(cosine)}), and the loss grows."
        ),
        (
            "look at the signs in the optimizer's step: p.sub_(lr * grad), p.add_(velocity, alpha=-lr); with Nesterov "
            "momentum p - lr * (grad + mu * velocity)",
            "where the loss is to grow, as a reward, watch its negative, or give the optimizer maximize=True",
        ),
        evidence={"cosine of update and gradient": cosine, "measured updates": float(len(cosines))},
        step=int(steps[up][0]),
        formula=(
            r"\mathcal{J}(\theta + u) \approx \mathcal{J}(\theta) + \nabla\mathcal{J}^\top u,\quad "
            r"\nabla\mathcal{J}^\top u > 0"
        ),
        severity="critical" if lost or (is_error and history.end > much * history.start > 0) else "info",
    )
    yield replace(told, charts=(LOG_LOSS, *told.charts[1:]))


def _is_meant(run: Run) -> bool:
    groups = run.meta["hyperparameters"]
    decays = any(isinstance(each, float | int) and each > 0 for group in groups for each in map(group.get, DECAYS))
    return decays or optimizer.maximizes(run)


def _cosines(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and cosines of the update with the gradient, as the backward pass left it if that was ever known."""
    names = ["step", "slope", "downhill", "grad_norm", "grad_norm_unclipped", "update_norm"]
    table = run.table("scalars", names)
    received, left, norm, unclipped, lengths = (signals.array(table, name) for name in names[1:])
    known = np.isfinite(left).any()
    cosines = (left if known else received) / (np.where(known & np.isfinite(unclipped), unclipped, norm) * lengths)
    kept = np.isfinite(cosines)
    return table["step"].to_numpy()[kept], cosines[kept]
