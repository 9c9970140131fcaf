"""This optimizer's own limits in words, formulas and remedies: the arithmetic that findings share.

Sources: lecture, "Ill-conditioned curvature: gradient descent dynamics", "Momentum"; Cohen et al. 2021 and 2022 for
momentum and Adam; the two-term budget for small batches.
"""

import math

import numpy as np
import pandas as pd

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

FAR_INSIDE = 0.03  # of the limit: thirty times as much, which is far, is still stable
SAFETY = 0.9  # of the stability limit: curvature is known to about a percent, but grows while training


def far_inside(run: Run, since: int) -> tuple[float, float] | None:
    """Rate and stability ratio of the estimates from a step on, where thirty times the rate would still be stable."""
    table = run.table("curvature", ["step", "stability"])
    late = table.loc[table["step"] >= since]
    ratio, rate = signals.median(signals.array(late, "stability")), optimizer.rate_at(run, late["step"].to_numpy())
    return (rate, ratio) if 0 < ratio < FAR_INSIDE else None


def passes_added(run: Run) -> float:
    """Backward passes whose gradients an update adds up; 1 where it takes their mean."""
    return float((run.meta["accumulated"]).get("times", 1))


def stability_formula(run: Run, stability: float, rate: float) -> str:
    """The stability ratio with this run's numbers in place of the symbols."""
    added = passes_added(run)
    several = rf"{added:g} \cdot " if added > 1 else ""
    top = 2 * stability / (rate * added) if rate else math.nan
    if optimizer.adaptive(run):
        return (
            rf"s = {tex(stability)} \quad (s = 1 \text{{ is the stability limit of "
            rf"{run.meta['optimizer'] or 'this optimizer'}}})"
        )
    mu = optimizer.momentum(run)
    if mu == 0:
        return (
            rf"{several}\alpha \lambda_{{\max}} = {several}{tex(rate)} \cdot {tex(top)} = {tex(2 * stability)} "
            rf"\;{'>' if stability > 1 else '<'}\; 2, \quad s = \tfrac{{1}}{{2}} \cdot {tex(2 * stability)} = "
            rf"{tex(stability)}"
        )
    if optimizer.hyperparameter(run, "nesterov", False):
        limit = 2 * (1 + mu) / (1 + 2 * mu)
        law = r"\frac{2(1+\mu)}{1+2\mu}"
    else:
        limit = 2 * (1 + mu)
        law = r"2(1+\mu)"
    return (
        rf"{several}\alpha \lambda_{{\max}} = {tex(stability * limit)} \;{'>' if stability > 1 else '<'}\; {law} = "
        rf"{tex(limit)}, \quad s = {tex(stability)}"
    )


def held(steps: np.ndarray, rates: np.ndarray, at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of something proportional to the learning rate, measured at some updates: the last value known at each update,
    times what the rate has become of the one it was measured at; NaN before the first."""
    if not len(rates):
        return np.full(len(steps), np.nan)
    own = rates[np.clip(np.searchsorted(steps, at, side="right") - 1, 0, len(rates) - 1)]
    at, scale = at[own > 0], values[own > 0] / own[own > 0]  # at rate 0 nothing was seen of what another would do
    index = np.searchsorted(at, steps, side="right") - 1
    if not len(at):
        return np.full(len(steps), np.nan)
    return np.where(index >= 0, scale[np.maximum(index, 0)] * rates, np.nan)


def at_last_rate(run: Run) -> float:
    """The last stability ratio, times what the rate has become since; NaN where none is known."""
    table = run.table("curvature", ["step", "stability"]).dropna()
    ratios = held(*optimizer.learning_rates(run), table["step"].to_numpy(), signals.array(table, "stability"))
    return float(ratios[-1]) if len(ratios) else math.nan


def heavy_ball(condition: float) -> tuple[float, float]:
    """Best momentum for a condition number, and its contraction per step (Polyak 1964)."""
    root = math.sqrt(condition)
    rho = (root - 1) / (root + 1)
    return rho**2, rho


def steps_for_tenfold(contraction: float) -> float:
    """Steps in which a coordinate that is multiplied by `contraction` a step shrinks to a tenth."""
    if contraction <= 0:
        return 1.0
    return math.inf if contraction >= 1 else math.log(10) / -math.log(contraction)


def steps_along(estimates: pd.DataFrame, condition: float) -> float:
    """Updates for a tenfold shrink along a path that curves `condition` times less than the steepest direction."""
    progress = signals.median(signals.array(estimates, "progress"))
    if not math.isfinite(progress) or not math.isfinite(condition):
        return math.inf
    return steps_for_tenfold(1 - min(1.0, progress / condition))


def momentum_remedy(condition: float) -> str:
    mu, rho = heavy_ball(condition)
    return (
        f"use momentum: torch.optim.SGD(..., momentum={min(mu, 0.99):.2g}); for a condition number of "
        f"{number(condition)} heavy ball needs about "
        f"{number(steps_for_tenfold(rho))} steps for a tenfold shrink where gradient descent needs "
        f"{number(steps_for_tenfold((condition - 1) / (condition + 1)))}"
    )
