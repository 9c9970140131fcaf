"""The steps of a run against their limits: how far below stability they were, and below the minimum along them.

Source: lecture, "Learning Rate" ("α too small: slow progress").
"""

from dataclasses import dataclass

import numpy as np

from diagnostics.rules import _epsilon as epsilon
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules._cut_short import cut_short, decay_step, spent_early
from diagnostics.run import Run


@dataclass(frozen=True)
class Pace:
    """The steps that are judged, against their limits."""

    first: int  # the update since which they are
    scheduled: bool  # a schedule lowered the rate too early, and they are those since
    ratio: float  # the largest stability ratio, with noise, of what clipping leaves
    overshoots: np.ndarray
    left: float  # by clipping, of a typical gradient
    outweighed: float  # epsilon over a typical gradient's entries

    @property
    def overshoot(self) -> float:
        """NaN of steps too short to tell it from rounding."""
        return signals.median(self.overshoots)


def pace_of(run: Run, history: signals.Loss, lowered: bool, decayed: float) -> Pace:
    """`lowered`: to less than this share of its highest, `decayed`, was the rate."""
    half = history.middle_step
    spent = spent_early(run, history) if lowered else None
    first = spent or (decay_step(*optimizer.learning_rates(run), decayed) if lowered else history.first_step)
    scheduled = lowered and (spent is not None or cut_short(run, history, first))
    if scheduled:
        ratio, overshoots = _lowered(run, half), steps_made.overshoots_inside(run, half, history.last_step)
    else:
        ratio, overshoots = _throughout(run), _overshoots(run, half, lowered)
    # Clipping shortens no step that is rescaled to the gradient's own size.
    left = 1.0 if epsilon.rescales(run) else left_by_clipping(run, half)
    return Pace(first, scheduled, ratio * left, overshoots, left, epsilon.over_gradient(run))


def left_by_clipping(run: Run, since: int, *, spikes: float = 0.1) -> float:
    """What clipping leaves of a typical gradient, and so of the rate, where that is far less than clipping is for:
    it is meant for spikes. 1 otherwise."""
    table = run.table("scalars", ["step", "grad_norm", "grad_norm_unclipped"]).dropna()
    late = table.loc[(table["step"] >= since) & (table["grad_norm_unclipped"] > 0)]
    left = steps_made.loss_scale(run) * signals.median((late["grad_norm"] / late["grad_norm_unclipped"]).to_numpy())
    return left if left < spikes else 1.0


def _throughout(run: Run, *, warm: int = 10) -> float:
    """The largest stability ratio, with noise, which follows the rate between estimates: thirty times it must have
    been stable throughout. NaN for an optimizer without one."""
    if np.isnan(signals.array(signals.curvature(run), "stability")).all():
        return np.nan
    steps, ratios = steps_made.stability(run)
    # Bias-corrected averages of the gradient (Adam) say little in the first updates.
    counted = steps >= warm if steps[-1] >= warm else steps > 0
    followed = limits.held(*optimizer.learning_rates(run), steps[counted], ratios[counted])
    return float(np.nanmax([*ratios[counted], *followed])) + signals.noise_term(run)


def _lowered(run: Run, since: int) -> float:
    """The same of a rate that was lowered, which the ratio follows between estimates."""
    steps, rates = optimizer.learning_rates(run)
    noise = run.table("batches", ["step", "noise_term"]).dropna()
    total = limits.held(steps, rates, *steps_made.stability(run))
    if len(noise):
        total = total + np.nan_to_num(
            limits.held(steps, rates, noise["step"].to_numpy(), noise["noise_term"].to_numpy())
        )
    return float(np.nanmax(total[steps >= since]))


def _overshoots(run: Run, since: int, lowered: bool, *, high: float = 0.5, least: int = 3) -> np.ndarray:
    """Those of the later half, and at least so many of the last ones; or of the updates at no less than half the
    highest rate where it was lowered. NaN where every step was too short to tell it from rounding."""
    table = run.table("scalars", ["step", "lr", "update_norm"])
    all_steps, rates = table["step"].to_numpy(), signals.array(table, "lr")
    measured, tall = np.isfinite(signals.array(table, "update_norm")), rates >= high * np.nanmax(rates)
    last = all_steps[measured & tall][-least:]
    chosen = tall if lowered else all_steps >= min([since, *last])
    if measured[chosen].sum() < least:
        raise signals.Missing(f"scalars.overshoot: fewer than {least} measured updates at the rate to be judged")
    steps, over = steps_made.overshoots(run)
    return over[np.isin(steps, all_steps[chosen])]
