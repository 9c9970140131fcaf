"""Whether a loss was harmed: not finite, above its start, or most of what it had gained is lost.

Source: lecture, "Learning Rate" ("α much too large: instability").
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._rolling import lowest_median, recent_median


def harmed(history: signals.Loss, sigmas: float, lost: float, reached: float, running_away: bool, spike: int) -> bool:
    """Not finite, above the start, or most of the gain lost - and still so at the end. `spike`: updates that a height
    must last to count where nothing was learned."""
    recent = history.values[-min(3, history.count) :]
    if not np.isfinite(history.end) or not np.isfinite(recent).all():
        return True
    end = _ahead(recent) if running_away else history.end
    low = end if running_away else min(end, float(recent.min()))
    quiet = signals.step_noise(history.values[: max(4, history.count // 4)])
    start, early = _beginning(history)
    margin = max(min(sigmas * quiet, abs(history.start)), sigmas * early, 0.1 * abs(history.start))
    if low - start > margin:
        return True
    gain = start - history.best
    if gain <= margin and history.end > reached * abs(history.start):
        # Nothing was learned for sure: did the loss tower over its start in between? In heavy tails one batch's does.
        tallest = float(np.nanmax(recent_median(history.values, spike)))
        noise = max(quiet, signals.step_noise(history.values[: history.window]))  # which the first value has too
        return tallest - start > max(sigmas * noise, abs(history.start))
    return end - history.best > max(lost * gain, sigmas * quiet)


def _beginning(history: signals.Loss) -> tuple[float, float]:
    """The first value, and 0. Of a loss that begins with both signs, as a policy's, it may be low by chance and is no
    scale: at least the median of the first ones, and their noise."""
    first = history.values[: history.window]
    if first.min() < 0 < first.max():
        return max(history.start, float(np.median(first))), signals.step_noise(first)
    return max(history.start, _mean_of_returns(history.values)), 0.0


def _mean_of_returns(values: np.ndarray, *, first: int = 25, times: int = 3) -> float:
    """Of the first values, until the loss was for the last time at its start again, if it went up and came back so
    often: then the start is one of two things that a batch may cost, as where few hold an example of a rare class.

    What runs away does not come back, and what was thrown up and fell does not go up again.
    """
    early = values[:first]
    back = np.flatnonzero((early[:-1] > values[0]) & (early[1:] <= values[0])) + 1
    return float(values[: back[-1] + 1].mean()) if len(back) >= times else -np.inf


def far_above(history: signals.Loss, sigmas: float) -> np.ndarray:
    """Updates at which the loss stood above twice its start, by more than the noise of the later half."""
    start, early = _beginning(history)
    noise = sigmas * max(signals.step_noise(history.values[history.count // 2 :]), early)
    return history.steps[history.values - start > max(noise, abs(history.start))]


def fell_to_the_end(history: signals.Loss, sigmas: float) -> bool:
    """A loss that was at its lowest when it became NaN or infinite was not growing: an operation failed."""
    bad = np.flatnonzero(~np.isfinite(history.values))
    before = history.values[: bad[0]] if len(bad) else history.values[:0]
    if len(before) <= 3:
        return False
    best = lowest_median(before, min(history.window, len(before)))
    return float(np.median(before[-3:])) <= best + sigmas * signals.step_noise(before)


def _ahead(recent: np.ndarray) -> float:
    """The next loss, if its rise grows once more as it just did: past s = 2 it is more than nine times the last."""
    before, rise = np.diff(recent)
    return float(recent[-1] + rise**2 / before)
