"""What is left to gain in the quadratic picture of the loss, and where that picture is exact.

Source: lecture, "Ill-conditioned curvature: gradient descent dynamics".
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.run import Run


def exact(run: Run) -> bool:
    """Whether gradient descent on this loss is gradient descent on a quadratic, as for a linear model under its own
    gradient (with a squared error; nearly so with the others)."""
    return bool(run.meta.get("linear_model")) and not signals.adaptive(run)


def left(run: Run, history: signals.Loss, condition: float, top: float) -> float:
    """|g|^2 kappa / (2 lambda_max): the fall that is left along a path that curves kappa times less than the steepest
    direction; NaN where nothing curves upwards."""
    return gradient_square(run, history) * condition / (2 * top) if top > 0 else np.nan


def gradient_square(run: Run, history: signals.Loss) -> float:
    """At the end; without the batches' noise where it was measured."""
    square = signals.latest(run, "batches", "gradient_square")
    _, norms = signals.column(run, "grad_norm")
    return square if np.isfinite(square) else signals.median(norms[-history.window :] ** 2)
