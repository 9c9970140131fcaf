"""What is left to gain in the quadratic picture of the loss, and where that picture is exact.

Sources: lecture, "Ill-conditioned curvature: gradient descent dynamics"; Mandt, Hoffman & Blei 2017, "Stochastic
Gradient Descent as Approximate Bayesian Inference", 3 (the stationary distribution).
"""

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.run import Run

# What a squared error is written with, after the last layer.
SQUARED = frozenset(
    ["mse_loss", "sub", "difference", "add", "neg", "mul", "div", "pow", "dot", "linalgvectornorm", "sum", "mean"]
)
# And a cross-entropy of logits.
LOGISTIC = frozenset(["cross_entropy", "log_softmax", "nll_loss", "binary_cross_entropy_with_logits", "mean"])
# Their updates are -D m, with D from earlier gradients and m a running mean of them.
DIAGONAL = frozenset({"Adam", "AdamW", "Adamax", "RAdam", "RMSprop", "Adagrad"})


def exact(run: Run) -> bool:
    """Whether gradient descent on this loss is gradient descent on a quadratic."""
    return not optimizer.adaptive(run) and is_loss(run)


def is_loss(run: Run) -> bool:
    """Whether the loss is a quadratic of the weights: a squared error of a linear model under its own gradient (fourth
    powers are written with the same functions, but their curvature changes).

    The Hessian of a cross-entropy vanishes on separable data with the loss, as 1 / t: there is always as much again to
    gain, at any rate, and no minimum to be far from.
    """
    return _is_linear(run, SQUARED) and _curves_alike(run)


def has_minimum(run: Run) -> bool:
    """Whether the loss settles around a minimum as a quadratic does: one, or the cross-entropy of a linear model on
    data that nothing separates, so that its curvature stays."""
    return (_is_linear(run, SQUARED) or _is_linear(run, LOGISTIC)) and _curves_alike(run)


def _is_linear(run: Run, functions: frozenset[str]) -> bool:
    path = set(signals.loss_calls(run))
    return bool(run.meta["linear_model"]) and path <= functions


def _curves_alike(run: Run, *, change: float = 2.0, ends: int = 3) -> bool:
    """Whether the Hessian is at the end what it was at the start, to a factor of `change` (medians of `ends` estimates,
    since a batch's own curvature scatters)."""
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
    overshoot = steps_made.overshoots_inside(run, first, last)
    changes = len(tops) < 3 or not np.ptp(tops) <= 0.01 * np.median(tops)
    if optimizer.adaptive(run) or optimizer.momentum(run) > 0 or len(overshoot) < 3 or changes:
        return np.nan
    highest = max(float(np.median(overshoot)), 0.0) + 2 * signals.median_error(overshoot)
    return float(ratio / highest) if highest > 0 else np.nan


def left(run: Run, history: signals.Loss, condition: float, top: float) -> float:
    """|g|^2 kappa / (2 lambda_max): the fall that is left along a path that curves kappa times less than the steepest
    direction; NaN where nothing curves upwards."""
    return gradient_square(run, history) * condition / (2 * top) if top > 0 else np.nan


def gradient_square(run: Run, history: signals.Loss) -> float:
    """At the end; without the batches' noise where it was measured, which may have been long before, where there was
    more of it: of the gradients at the end it is a part."""
    square = signals.latest(run, "batches", "gradient_square")
    norms = signals.whole_norms(run)[1]
    return float(np.fmin(square, signals.median(norms[-history.window :] ** 2)))


def held_by_noise(run: Run, history: signals.Loss, since: int) -> tuple[float, float]:
    """Part of the loss that the noise of the batches keeps up once the run has settled, and its standard error; NaN for
    an optimizer whose updates are not -D m of a running mean m of the gradients and a diagonal D.

    Where E (w - w*)'D^-1(w - w*) no longer changes, 2 E(w - w*)'H(w - w*) = E g'Dg, so that E g'Dg / 4 of the loss is
    motion around the minimum. An update shows it as -g'u = (1 - mu) g'Dg, since earlier gradients are of other batches;
    for SGD all gradients do, with D = eta F(1). To first order in D H.
    """
    name = str(run.meta["optimizer"])
    if name == "SGD":
        table = run.table("scalars", ["step", "grad_norm", "lr"]).dropna()
        scale = signals.latest(run, "curvature", "gain_dc")
        moved = scale * table["lr"].to_numpy() * table["grad_norm"].to_numpy() ** 2
    elif name in DIAGONAL:
        table = run.table("scalars", ["step", "slope"]).dropna()
        moved = -table["slope"].to_numpy() / (1 - optimizer.momentum(run))
    else:
        return np.nan, np.nan
    late = moved[table["step"].to_numpy() >= since] / 4 / float(history.after(since).mean())
    return (float(late.mean()), float(late.std(ddof=1)) / len(late) ** 0.5) if len(late) > 2 else (np.nan, np.nan)
