"""Momentum so high that the weights ring back and forth for the whole run.

Source: lecture, "Momentum" ("if mu = 1, conservation of energy implies it will never settle down").
"""

from typing import NamedTuple

import numpy as np

from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

FALLS = 0.2  # of the loss within the last third: what it once rose to is not over
AT_ONCE = 0.5  # of a rise, from one block of the smoothed loss to the next: other data come so, a ring does not
USUAL = 0.9  # momentum that the lecture recommends: where even its 20 updates are long, the run is short


def momentum_ringing(kind: str, run: Run, history: signals.Loss, memory: float, swing: float) -> Finding | None:
    """`memory`: share of the run within which nothing settles; `swing`: share of the level, or of all that the loss
    covers in the later half, from trough to crest."""
    mu = optimizer.momentum(run)
    if mu <= USUAL or (mu >= 1 and optimizer.adaptive(run)):
        return None
    lasts = 2 / (1 - mu) if mu < 1 else np.inf
    if lasts < memory * history.count:
        return None
    late = signals.trend(history.values[2 * history.count // 3 :])
    half = history.count // 2
    swings = _swings(run, history, half)
    if lasts < half and late.z > 3 and late.relative > FALLS:  # later than one memory the start is forgotten
        swings += [each for each in _swings(run, history, int(lasts)) if each.steepest <= AT_ONCE * each.rise]
    largest = max((each.rise / each.low for each in swings), default=0.0)
    climbs = any(each.rise >= swing * each.covered for each in swings)
    unsettled = lasts >= history.count and history.end > 0.05 * history.start and late.relative < 0.2
    if largest < swing and not climbs and not unsettled:
        return None
    rate = optimizer.last_rate(run)
    calm = max(0.0, min(0.9, 1 - 2 / (memory / 3 * history.count)))
    best = _rate_for(run, mu, calm)
    return Finding(
        kind=kind,
        cause="momentum",
        severity="warning",
        first_step=history.first_step,
        last_step=None,
        layers=(),
        summary=(
            f"With momentum {mu:.6g} the updates remember {number(lasts)} steps in a run of "
            f"{history.count}: the loss "
            + (f"swings by {number(100 * largest)} % of its level and " if largest >= 0.01 else "")
            + "has not settled."
        ),
        evidence={"momentum": mu, "memory in updates": lasts, "largest swing": largest, "loss at end": history.end},
        remedies=(
            f"lower the momentum to {number(calm)}"
            + (
                f", with a learning rate of {number(best)} (now {number(rate)}): as close to the present terminal "
                "velocity as half the largest stable rate allows"
                if best > 1.01 * rate
                else ""
            ),
            "or raise the momentum from 0.5 as training goes on",
        ),
        charts=(
            LOG_LOSS,
            Chart("line", "scalars", ("weight_norm",), "Norm of the weights"),
        ),
        formula=(
            rf"\frac{{2}}{{1-\mu}} = {tex(lasts)} \text{{ updates of memory}}, \qquad \text{{terminal "
            rf"velocity }} \frac{{\alpha}}{{1-\mu}} = {tex(rate / (1 - mu) if mu < 1 else np.inf)}"
        ),
    )


def _rate_for(run: Run, mu: float, lower: float) -> float:
    """The rate that keeps the terminal velocity eta / (1 - mu) at a lower momentum, within half of heavy ball's limit
    there, noise included. Steps of adaptive optimizers have the rate's own length at any momentum."""
    rate, ratio = optimizer.last_rate(run), limits.at_last_rate(run)
    calmer = max(1 - mu, 1e-6) / (1 - lower)
    if not ratio > 0 or optimizer.adaptive(run):
        return rate
    then = ratio * (1 + mu) / (1 + lower) + signals.noise_term(run) * calmer  # at this rate
    return min(rate / calmer, 0.5 * rate / then)


class Swing(NamedTuple):
    """A rise of the smoothed loss, the level it starts from, all that this loss covers, and the rise's largest step."""

    rise: float
    low: float
    covered: float
    steepest: float


def _swings(run: Run, history: signals.Loss, since: int) -> list[Swing]:
    """Rises of the smoothed loss that exceed its noise, from one update on, where no rise of the rate made them."""
    steps, rates = optimizer.learning_rates(run)
    later = rates[steps >= history.steps[since]]
    if len(later) and (later > 1.05 * np.minimum.accumulate(later)).any():
        return []
    late = history.values[since:]
    medians, size = _smoothed(late[np.isfinite(late)])
    error = 1.2533 * history.noise / np.sqrt(size)
    rises: list[Swing] = []
    low = crest = medians[0] if len(medians) else 0.0
    low_at = crest_at = 0
    for at, value in enumerate([*medians[1:], -np.inf], 1):
        if value > crest:
            crest, crest_at = value, at
        elif value < low or crest - value > 0.5 * (crest - low):
            if crest - low > 5 * error and low > 0:
                steepest = float(np.diff(medians[low_at : crest_at + 1]).max())
                rises.append(Swing(float(crest - low), float(low), float(np.ptp(medians)), steepest))
            low = crest = value
            low_at = crest_at = at
    return rises


def _smoothed(values: np.ndarray, *, blocks: int = 40, least: int = 5) -> tuple[np.ndarray, int]:
    """Medians of blocks, and their size. Where noise turns the loss at most updates, a block has so many at `least`:
    a median of fewer is no match for heavy tails."""
    up = np.diff(values) > 0
    noisy = len(up) < 2 or float((up[1:] == up[:-1]).mean()) <= 0.5  # a third where all is noise
    size = max(least if noisy else 1, len(values) // blocks)
    medians = np.median(values[: len(values) // size * size].reshape(-1, size), axis=1)
    return (_lone_peaks_cut(medians) if noisy else medians), size


def _lone_peaks_cut(values: np.ndarray) -> np.ndarray:
    """Each at most as high as the higher of its neighbours: weights that remember many updates do not leave a level for
    a single one, but one batch of a heavy-tailed loss does."""
    if len(values) < 3:
        return values
    before, after = np.r_[-np.inf, values[:-1]], np.r_[values[1:], -np.inf]
    return np.minimum(values, np.maximum(before, after))
