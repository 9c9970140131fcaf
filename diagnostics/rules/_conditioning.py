"""Which property of the inputs, or of a layer's outputs, makes the Hessian of the next layer ill-conditioned.

Source: lecture, "Ill-conditioned curvature: normalization".
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._words import number
from diagnostics.run import Run

MANY = 16  # features from which on they are taken as a bulk
AWAY = 10.0  # deviations from zero: a unit of random weights then hardly ever bends within the data


@dataclass(frozen=True)
class Spread:
    """Which property of the inputs makes the Hessian of the first layer ill-conditioned, as condition numbers.

    For a linear layer the Hessian is the matrix of the inputs' second moments: with deviations S, correlations C and
    means m it is S C S + m m'. `scale`: ratio of the largest to the smallest mean square; `offset`: 1 + the sum of
    squared means over variances, which is the largest eigenvalue of that matrix for C = S = 1; `correlation`: condition
    number of C. `away`: |m| over the root of the sum of variances: how many of its deviations from zero a weighted sum
    of the features lies, with weights of one size. `bias`: condition number of the plane that a bias and the weights
    along m make, for a typical deviation: there they have to move against each other to follow the variation alone. It
    is 1 without a bias, under an adaptive optimizer, which moves each at its own rate, and in a linear model of many
    features, which needs that one direction for little. (Hidden units need it to bend within the data.)
    """

    scale: float
    offset: float
    correlation: float
    away: float = 0.0
    bias: float = 1.0

    @property
    def cause(self) -> str:
        size = {"feature-scale": self.scale, "uncentered-inputs": self.offset, "correlated-inputs": self.correlation}
        return max(size, key=lambda name: size[name])

    @property
    def largest(self) -> float:
        return max(self.scale, self.offset, self.correlation)

    @property
    def condition(self) -> float:
        """Of the directions that the cause spoils."""
        return max(self.largest, self.bias) if self.cause == "uncentered-inputs" else self.largest


def inputs(run: Run) -> pd.DataFrame:
    """Mean and deviation of each input feature at the last record; empty if the inputs were not observed."""
    table = run.table("inputs")
    return table.loc[table["step"] == table["step"].max()] if len(table) else table


def spread(run: Run) -> Spread | None:
    """`None` where the inputs were not observed, or never vary."""
    table = inputs(run)
    if table.empty:
        return None
    mean, deviation = table["mean"].to_numpy(dtype=float), table["std"].to_numpy(dtype=float)
    varies = deviation > 1e-6 * np.abs(mean).max(initial=0) + np.finfo(np.float32).tiny
    if not varies.any():
        return None
    mean, deviation = mean[varies], deviation[varies]
    square = mean**2 + deviation**2
    condition = table["condition"].to_numpy(dtype=float)
    finite = condition[np.isfinite(condition)]
    # of many features, such as pixels, some are almost always zero: compare the bulk, not the extremes
    low, high = (square.min(), square.max()) if len(square) < MANY else np.quantile(square, [0.25, 0.75])
    offset = 1 + float(np.median((mean / deviation) ** 2)) * len(mean)
    away = float(np.sqrt(np.square(mean).sum() / np.square(deviation).sum()))
    correlation = float(finite[-1]) if len(finite) and len(square) < MANY else 1.0
    needed = len(mean) < MANY or not run.meta["linear_model"]
    traded = needed and _first_has_bias(run) and not optimizer.adaptive(run)
    bias = _with_bias(mean, deviation) if traded else 1.0
    return Spread(float(high / low), offset, correlation, away, bias)


def _with_bias(mean: np.ndarray, deviation: np.ndarray) -> float:
    """Condition number of the second moments of (1, m'x / |m|)."""
    variance = float(np.median(deviation**2))
    trace = 1 + float(np.square(mean).sum()) + variance  # and the determinant is the variance
    return float(((trace + np.sqrt(trace**2 - 4 * variance)) / 2) ** 2 / variance)


def _first_has_bias(run: Run) -> bool:
    parameters = list(by_layer.described(run))
    return len(parameters) > 1 and parameters[1].rpartition(".")[2] == "bias"


def logistic_offset(run: Run) -> tuple[str, float]:
    """The logistic layer where 1 + sum of squared means over variances of the outputs is largest, and that number;
    1 where there is none."""
    logistic = [
        name
        for name, (function, _) in by_layer.activations(run).items()
        if function == "sigmoid" and not name.startswith("loss.")
    ]
    _, names, means = run.matrix("units", "mean")
    _, _, deviations = run.matrix("units", "std")
    at = [list(map(str, names)).index(name) for name in logistic]
    if not at:
        return "", 1.0
    units = np.array([by_layer.activations(run)[name][1] for name in logistic])
    offset = 1 + units * (np.nanmedian(means[:, at], axis=0) / np.nanmedian(deviations[:, at], axis=0)) ** 2
    if np.isnan(offset).all():
        return "", 1.0
    largest = int(np.nanargmax(offset))
    return logistic[largest], float(offset[largest])


def standardize(run: Run) -> str:
    """The remedy for inputs of unequal scale or far from centred, with the numbers of the largest and the smallest."""
    table = inputs(run)
    varying = signals.array(table, "std") > 0
    table = table.loc[varying] if varying.any() else table
    sizes = np.hypot(signals.array(table, "mean"), signals.array(table, "std"))
    table = table.iloc[np.argsort(-sizes, kind="stable")]
    shown = "; ".join(
        f"x[{feature}]: mean {number(mean)}, deviation {number(std)}"
        for feature, mean, std in zip(table["feature"], table["mean"], table["std"], strict=True)
        if feature in {*table["feature"].iloc[:2], *table["feature"].iloc[-1:]}
    )
    return f"centre and scale each input feature, x = (x - mean) / std ({shown})"


def if_far_from_standardized(run: Run, *, wide: float = 100.0) -> tuple[str, ...]:
    """That remedy, where the inputs make the first layer's curvature by themselves, and so the limit of the rate."""
    found, table = spread(run), inputs(run)
    size = signals.median(signals.array(table, "mean") ** 2 + signals.array(table, "std") ** 2)  # standardized: 1
    # standardizing leaves correlation as it is
    far = found is not None and max(found.scale, found.offset, size) >= wide
    return (standardize(run),) if far else ()
