"""A loss whose value is the same whatever the weights are, though it has a gradient: it compares a model with itself.

Source: lecture, "Plateaux" (what a loss that stands still may be).
"""

import numpy as np

from diagnostics.rules import _reach as reaching
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS_AND_GRADIENT
from diagnostics.rules._finding import Finding
from diagnostics.rules._stretches import Flat
from diagnostics.rules._words import number
from diagnostics.run import Run

ROUNDING = 1e-5  # relative difference that sums of a batch's size leave in single precision


def constant_value(kind: str, run: Run, stretch: Flat, *, due: float = 0.01) -> Finding | None:
    """As information: divided by its own detached value a loss is 1, and its gradient is right. `due`: of the loss,
    what the updates should have taken off it."""
    history = signals.loss(run)
    least, most = float(history.values.min()), float(history.values.max())
    promised = reaching.reach(run, history, history.middle_step)
    if not most or most - least > ROUNDING * abs(most) or not due * abs(most) <= promised < np.inf:
        return None
    return stretch.finding(
        kind,
        "constant-value",
        (),
        f"The loss was {number(most)} at every update, but for rounding, though the weights moved along a gradient "
        "that is not 0: its value does not depend on them. So it is where a model is compared with itself, as with a "
        "reference that is the same object or takes over its weights, and where a loss is divided by its own value.",
        {"loss": most, "updates": float(history.count)},
        (
            "give the reference the weights as they are at the start, reference = copy.deepcopy(model), made once and "
            "before any update",
            "where it is meant, follow another number: monitor.log(reward=...)",
        ),
        LOSS_AND_GRADIENT,
        severity="info",
    )
