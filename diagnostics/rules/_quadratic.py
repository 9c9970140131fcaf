"""What is left to gain in the quadratic picture of the loss, and where that picture is exact.

Sources: lecture, "Ill-conditioned curvature: gradient descent dynamics"; Mandt, Hoffman & Blei 2017, "Stochastic
Gradient Descent as Approximate Bayesian Inference", 3 (the stationary distribution).
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.run import Run

# What a squared error is written with, after the last layer.
SQUARED = frozenset({"mse_loss", "sub", "add", "neg", "mul", "div", "pow", "dot", "linalgvectornorm", "sum", "mean"})


def exact(run: Run, *, change: float = 2.0, ends: int = 3) -> bool:
    """Whether gradient descent on this loss is gradient descent on a quadratic, to a factor of `change`: a squared
    error of a linear model under its own gradient, whose Hessian is at the end what it was at the start (medians of
    `ends` estimates, since a batch's own curvature scatters; fourth powers are written with the same functions).

    The Hessian of a cross-entropy vanishes on separable data with the loss, as 1 / t: there is always as much again to
    gain, at any rate, and no minimum to be far from.
    """
    path = {each.strip() for each in str(run.meta.get("loss_path") or "").split("->")}
    if not run.meta.get("linear_model") or not path <= SQUARED or signals.adaptive(run):
        return False
    tops = signals.tops(signals.curvature(run))
    before, after = signals.median(tops[:ends]), signals.median(tops[-ends:])
    return bool(before < change * after and after < change * before)


def condition(run: Run, first: int, last: int) -> float:
    """kappa along the updates between two steps, where no curvature was measured along the path; NaN but for plain
    gradient descent on a loss whose steepest curvature stays the same.

    u = -eta g makes the overshoot ratio r = eta u'Hu / (2 |u|^2), so kappa = lambda_max |u|^2 / u'Hu = s / r. A lower
    bound: r is taken two standard errors up, since the shorter the steps the more of it is rounding.
    """
    table = signals.curvature(run)
    tops, ratio = signals.tops(table), signals.latest(run, "curvature", "stability", last)
    overshoot = signals.inside(run, "overshoot", first, last)
    changes = len(tops) < 3 or not np.ptp(tops) <= 0.01 * np.median(tops)
    if signals.adaptive(run) or signals.momentum(run) > 0 or len(overshoot) < 3 or changes:
        return np.nan
    middle = np.median(overshoot)
    error = 1.2533 * signals.MAD_TO_SD * np.median(np.abs(overshoot - middle)) / np.sqrt(len(overshoot))
    highest = max(middle, 0.0) + 2 * error
    return float(ratio / highest) if highest > 0 else np.nan


def left(run: Run, history: signals.Loss, condition: float, top: float) -> float:
    """|g|^2 kappa / (2 lambda_max): the fall that is left along a path that curves kappa times less than the steepest
    direction; NaN where nothing curves upwards."""
    return gradient_square(run, history) * condition / (2 * top) if top > 0 else np.nan


def gradient_square(run: Run, history: signals.Loss) -> float:
    """At the end; without the batches' noise where it was measured."""
    square = signals.latest(run, "batches", "gradient_square")
    _, norms = signals.column(run, "grad_norm")
    return square if np.isfinite(square) else signals.median(norms[-history.window :] ** 2)


def held_by_noise(run: Run, history: signals.Loss, since: int) -> tuple[float, float]:
    """Part of the loss that the noise of the batches keeps up once the run has settled, and its standard error; NaN but
    for SGD with and without momentum.

    Where E|w - w*|^2 no longer changes, 2 eta E[(w - w*)'H(w - w*)] = eta^2 E|g|^2, so that eta E|g|^2 / 4 of the loss
    is motion around the minimum; momentum makes it F(1) = 1 / (1 - mu) times that, to first order in eta lambda.
    """
    if "SGD" not in str(run.meta.get("optimizer", "")):
        return np.nan, np.nan
    table = run.table("scalars", ["step", "grad_norm", "lr"]).dropna()
    late = table.loc[table["step"] >= since]
    lost = signals.latest(run, "curvature", "gain_dc") * late["lr"].to_numpy() * late["grad_norm"].to_numpy() ** 2 / 4
    if len(lost) < 2:
        return np.nan, np.nan
    level = float(history.after(since).mean())
    return float(lost.mean()) / level, float(lost.std(ddof=1)) / len(lost) ** 0.5 / level
