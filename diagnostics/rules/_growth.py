"""How the loss left the level it had reached, and where the learning rate stood against the limit while it did."""

from dataclasses import dataclass

import numpy as np

from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules._finding import Finding
from diagnostics.rules._rolling import lowest_median
from diagnostics.run import Run

FLAT = 0.05  # stability ratio: the curvature that was met limits no rate, as behind a softmax thrown far
REVERSED = -0.5  # cosine of successive gradients: most of each update is undone by the next


@dataclass(frozen=True)
class Growth:
    """The stretch in which the loss left the level it had reached. `factor`: gradient norm after over before."""

    onset: int
    steps: int
    factor: float

    @property
    def end(self) -> int:
        return self.onset + self.steps


@dataclass(frozen=True)
class Limit:
    """The rate against the stability limit: `ratio` at the learning rate `rate`, above 1 without a break since `since`.

    `noise`: the part of the ratio that small batches add. `ruined`: measured only when the loss had already grown
    tenfold, so that it says nothing of the weights before.
    """

    ratio: float
    rate: float
    since: int
    noise: float = 0.0
    ruined: bool = False


def growth(run: Run, history: signals.Loss) -> Growth:
    """From the last update at or below the best level reached before the worst, to the worst (or the first
    non-finite)."""
    values = np.where(np.isfinite(history.values), history.values, np.inf)
    worst = int(np.argmax(values))
    if worst == 0:  # the start is the worst there was: what was lost of the gain since?
        lowest = int(np.argmin(values))
        worst = lowest + int(np.argmax(values[lowest:]))
    if worst == 0:
        return Growth(history.first_step, 0, 1.0)
    worst = _first_of_its_kind(history, values, worst)
    before = values[:worst]
    noise = min(history.noise, abs(history.start))  # of a run that is mostly growth, more is growth
    onset = int(np.flatnonzero(before <= before.min() + noise)[-1])
    steps, norms = signals.column(run, "grad_norm")
    inside = (steps >= history.steps[onset]) & (steps <= history.steps[worst]) & np.isfinite(norms)
    factor = float(norms[inside][-1] / norms[inside][0]) if inside.sum() >= 2 and norms[inside][0] > 0 else np.nan
    return Growth(int(history.steps[onset]), worst - onset, factor)


def is_swift(history: signals.Loss, grown: Growth, *, least: float = 1.05) -> bool:
    """Whether the growth, up to half of the worst loss, was as fast as that of the gradient past the limit: a rate
    2.5 % above it multiplies the error by `least` an update, with momentum by more. A task that gets harder takes its
    time."""
    inside = history.values[(history.steps >= grown.onset) & (history.steps <= grown.end)]
    if not (np.isfinite(grown.factor) and len(inside)):
        return True
    halfway = int(np.argmax(inside >= np.nanmax(inside) / 2))
    return halfway <= np.log(grown.factor) / np.log(least)


def _first_of_its_kind(history: signals.Loss, values: np.ndarray, worst: int, *, towering: float = 10.0) -> int:
    """Where the loss has grown to `towering` times its start once and never came back below the start for good, its
    worst soon after that first time; else `worst`."""
    towers = np.flatnonzero(values[:worst] > towering * abs(history.start))
    if not len(towers):
        return worst
    first = int(towers[0])
    back = lowest_median(values[first:worst], min(history.window, worst - first)) < history.start
    return worst if back else first + int(np.argmax(values[first : first + history.window]))


def running_away(run: Run, history: signals.Loss, gradual: int, *, times: float = 10.0, rising: float = 0.75) -> bool:
    """Whether the run ends while its gradient and loss are growing: the gradient's norm `times` what it was, over at
    least `gradual` updates most of which (`rising`) added to it. The last loss is then no spike among others."""
    steps, norms = signals.column(run, "grad_norm")
    if len(norms) <= gradual or steps[-1] != history.steps[-1]:
        return False
    smaller = np.flatnonzero(norms * times <= norms[-1])
    if not len(smaller):
        return False
    climb = np.diff(norms[min(smaller[-1], len(norms) - 1 - gradual) :]) > 0
    losses = np.diff(history.values[-3:])
    return bool(climb[-gradual:].all() and climb.mean() >= rising and (losses > history.noise).all())


def against_limit(run: Run, grown: Growth, gradual: int) -> Limit:
    """Where the growth first was past the limit; its largest ratio if it never was.

    Between estimates the ratio follows the learning rate, to which it is proportional. Estimates from inside the growth
    count only if it was gradual: beyond a cliff the curvature says nothing about the step that led there.
    """
    steps, rates = optimizer.learning_rates(run)
    unknown = Limit(
        np.nan, float(rates[steps <= max(grown.onset, steps[0])][-1]) if len(rates) else np.nan, grown.onset
    )
    try:
        estimates, ratios = steps_made.stability(run)
    except signals.Missing:
        return unknown
    if not len(rates) or _long_before(estimates, grown, gradual):
        return unknown
    last = grown.end if grown.steps >= gradual or estimates[0] > grown.onset else grown.onset
    known = (estimates <= max(last, estimates[0])) & ~refuted(estimates, ratios, grown.onset)
    noise = np.nan_to_num(limits.held(steps, rates, *_noise(run, grown, gradual)))  # none at a rate of 0
    held = limits.held(steps, rates, estimates[known], ratios[known]) + noise
    inside = np.flatnonzero((steps >= grown.onset) & (steps <= max(grown.end, estimates[0])) & np.isfinite(held))
    if not len(inside):
        return unknown
    past = inside[held[inside] > 1]
    if not len(past):
        at = int(inside[np.argmax(held[inside])])
        return Limit(float(held[at]), float(rates[at]), grown.onset, float(noise[at]))
    at = int(past[0])
    within = np.flatnonzero(~(held[:at] > 1))
    begin = int(within[-1] + 1 if len(within) else 0)
    if _blown(run, estimates, int(steps[at])):  # the weights that the rate was too large for were earlier ones
        at = begin
    unmeasured = estimates[0] > grown.onset
    since = min(int(steps[begin]), grown.onset) if unmeasured else int(steps[begin])
    blown = _blown(run, estimates, int(steps[at]))
    return Limit(float(held[at]), float(rates[at]), since, float(noise[at]), blown)


def _long_before(estimates: np.ndarray, grown: Growth, gradual: int) -> bool:
    """Whether all estimates are of the first half of the way to a gradual growth, and so of other curvature."""
    return grown.steps >= gradual and bool(estimates[-1] < grown.onset / 2)


def refuted(estimates: np.ndarray, ratios: np.ndarray, onset: int) -> np.ndarray:
    """Which estimates past the limit were one batch's, not the loss's: the error grows by 2 s - 1 an update, so that
    even rounding would have grown to the size of the weights before `onset`, and the loss left its level."""
    with np.errstate(invalid="ignore"):
        grown = (onset - estimates) * np.log(np.maximum(2 * ratios - 1, 1))
    return (ratios > 1) & (grown > -np.log(np.finfo(np.float32).eps))


def _noise(run: Run, grown: Growth, gradual: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and noise terms, up to the growth's end where it was gradual; a zero before the first. For optimizers that
    rescale their gradients the term is advice, no limit.

    A term after which most of what was ever gained was gained has not made the loss grow: where the noise is past its
    limit, it does so from there on. Such a term is a few examples' huge curvature, as before a cliff.
    """
    table = run.table("batches", ["step", "origin", "noise_term"])
    last = grown.end if grown.steps >= gradual else grown.onset
    steps, terms = signals.array(table, "step"), signals.array(table, "noise_term")
    kept = (steps <= last) & np.isfinite(terms)
    gained = kept.any() and _gained_most(run, int(signals.array(table, "origin")[kept][-1]), grown, gradual)
    if optimizer.adaptive(run) or gained:
        terms = np.zeros_like(terms)
    return np.r_[0, steps[kept]], np.r_[0.0, terms[kept]]


def _blown(run: Run, estimates: np.ndarray, step: int) -> bool:
    """Whether the loss had grown tenfold when the last estimate up to a step was made."""
    history = signals.loss(run)
    measured = history.steps <= estimates[estimates <= step][-1]
    return bool(not (history.values[measured][-1:] <= 10 * abs(history.start)).all())


def _gained_most(run: Run, since: int, grown: Growth, gradual: int, *, most: float = 0.5) -> bool:
    """Whether the loss fell by `most` of its whole gain between a step and the growth."""
    history = signals.loss(run)
    between = history.values[(history.steps >= since) & (history.steps <= grown.onset)]
    if len(between) < 2 * gradual:
        return False
    fall = signals.level(between[:gradual]) - signals.level(between[-gradual:])
    return bool(fall > most * (history.start - history.best) > 0)


def by_noise_alone(finding: Finding) -> bool:
    """Past the limit only with the noise of small batches, which makes a loss grow gradually."""
    return 0 <= finding.evidence.get("stability ratio", 2.0) - finding.evidence.get("noise term", 0.0) <= 1


def undone(run: Run, ratio: float, grown: Growth) -> bool:
    """Whether each update is undone by the next, where the curvature that was met limits no rate."""
    return not ratio > FLAT and reversal(run, grown) < REVERSED


def reversal(run: Run, grown: Growth) -> float:
    """Median cosine of successive gradients since the loss left its level, where their mean is negative for sure: of a
    gradient along one direction alone each is 1 or -1, whatever the noise. NaN otherwise, and if they are too few."""
    return float(np.median(signal.cosines(run, grown.onset))) if signal.opposed(run, grown.onset) else np.nan
