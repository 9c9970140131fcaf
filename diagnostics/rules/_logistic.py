"""Least squares behind a logistic output whose derivative has vanished.

Source: lecture, "Plateaux" ("logistic activations & least squares").
"""

import numpy as np
import pandas as pd

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _stretches as stretches
from diagnostics.rules._charts import LOSS_AND_GRADIENT
from diagnostics.rules._finding import Finding
from diagnostics.rules._given import BOUNDED, goes_into
from diagnostics.rules._rolling import recent_median
from diagnostics.rules._words import number, tex
from diagnostics.run import Run


def wrong(history: signals.Loss, *, undecided: float = 0.25) -> stretches.Flat:
    """The first updates, in which the loss stays above 1/4: the most that answering 1/2 to everything can cost in
    squared error."""
    smooth = recent_median(history.values, 5)
    better = np.flatnonzero(smooth < undecided)
    count = int(better[0]) if len(better) else history.count
    last = int(history.steps[max(count, 1) - 1])
    share = count / history.count
    return stretches.Flat(history.first_step, last, signals.level(history.values[:count]), share, bool(len(better)))


def overconfident(run: Run, history: signals.Loss, *, times: float = 2.0) -> stretches.Flat:
    """Where outputs that are confidently wrong make up most of a squared error against targets of 0 and 1.

    An output y on the right side of 1/2 costs at most y (1 - y), the derivative: what the mean cost exceeds the mean
    derivative by is paid on the wrong side. Outputs as sure as they are right cost y (1 - y) on average (Brier 1950).
    """
    nowhere = stretches.Flat(0, 0, np.nan, 0.0, False)
    if not _squares_logistic_outputs(run) or history.start > 1:  # summed, not a mean
        return nowhere
    derivative = _logistic_slopes(run)
    steps, slopes = derivative.index.to_numpy(), derivative.to_numpy() / 4
    smooth = pd.Series(recent_median(history.values, 5), history.steps)
    losses = smooth.reindex(steps).to_numpy()
    wrong = np.flatnonzero(losses > times * slopes)
    if not len(wrong):
        return nowhere
    first, last = int(steps[wrong[0]]), int(steps[wrong[-1]])
    escaped = len(steps) - wrong[-1] > 2
    return stretches.Flat(first, last, float(np.median(losses[wrong])), len(wrong) / len(steps), escaped)


def least_squares(kind: str, run: Run, stretch: stretches.Flat, slope: float, first: bool = False) -> Finding | None:
    if not _squares_logistic_outputs(run):
        return None
    derivative = _output_slope(run, stretch, first)
    if not derivative < slope:
        return None
    return stretch.finding(
        kind,
        "logistic-least-squares",
        (),
        f"The loss {'lay above 1/4' if first else f'stood at {number(stretch.level)}'} from step {stretch.first_step} "
        f"to {stretch.last_step}: the logistic outputs' derivative is {number(100 * derivative)} % of its maximum, "
        "and least squares multiplies every error by it.",
        {"output derivative over maximum": derivative, "loss": stretch.level, "share of the run": stretch.share},
        (
            "use F.binary_cross_entropy_with_logits on the logits: its gradient is y - t, whatever the saturation",
            "start the output's bias at 0, so that no output begins saturated",
        ),
        LOSS_AND_GRADIENT,
        (
            rf"\frac{{\partial\mathcal{{L}}}}{{\partial z}} = (y - t)\,y\,(1 - y), \quad \overline{{y(1-y)}} "
            rf"\approx {tex(derivative / 4)}"
        ),
    )


def _squares_logistic_outputs(run: Run) -> bool:
    path = signals.loss_path(run)
    return goes_into(path, "sigmoid", "mse_loss", BOUNDED | {"sub"})


def _output_slope(run: Run, stretch: stretches.Flat, first: bool) -> float:
    """Mean derivative of the last logistic activation over its maximum, at the first measurement of the stretch or its
    median."""
    slopes = _logistic_slopes(run).loc[stretch.first_step : stretch.last_step].to_numpy()
    return float(slopes[0] if first else np.median(slopes)) if len(slopes) else np.nan


def _logistic_slopes(run: Run) -> pd.Series:
    """Mean derivative of the last logistic activation over its maximum, by step."""
    steps, names, values = run.matrix("units", "derivative")
    functions = by_layer.activations(run)
    logistic = [at for at, name in enumerate(names) if functions.get(str(name), ("",))[0] == "sigmoid"]
    if not logistic:
        return pd.Series(dtype=float)
    return pd.Series(values[:, logistic[-1]], steps, dtype=float).dropna()
