"""Rolling medians, and the lowest level of a long series: the minimum of one without the rolling median itself.

A rolling median over a twentieth of a million losses takes longer than all other work of the rules.
"""

import bisect

import numpy as np
import pandas as pd


def recent_median(values: np.ndarray, window: int) -> np.ndarray:
    """(T,) median of each value and those before it, `window` in all, fewer at the start: for a few."""
    return pd.Series(values).rolling(window, min_periods=1).median().to_numpy()


def lowest_median(values: np.ndarray, window: int, few: int = 100) -> float:
    """The least median of `window` consecutive finite values (T,), exactly; NaN if there are no such windows.

    The k-th smallest value of some window is at most v if some window holds k values up to v: bisection finds the least
    v without sorting a window.
    """
    finite = np.isfinite(values)
    whole = _sliding(finite, window) == window
    if not whole.any():
        return np.nan
    rank = window // 2 + 1
    ordered = np.sort(values[finite])

    def reached(value: float) -> np.ndarray:
        return whole & (_sliding(values <= value, window) >= rank)

    upper = float(ordered[bisect.bisect_left(ordered, True, key=lambda value: reached(value).any())])
    if window % 2:
        return upper
    # The median of an even window is the mean of two of its values. No window has a smaller upper one than this; what
    # beats it has a smaller lower one.
    at = int(np.argmax(reached(upper)))
    lower = np.partition(values[at : at + window], rank - 2)[rank - 2]
    better = np.flatnonzero(whole & (_sliding(values < lower, window) >= rank - 1))
    if len(better) > few:
        return float(np.nanmin(pd.Series(values).rolling(window).median().to_numpy()))
    return min(float(np.median(values[at : at + window])) for at in (at, *better))


def _sliding(flags: np.ndarray, window: int) -> np.ndarray:
    """How many of `window` consecutive flags (T,) hold: (T - window + 1,)."""
    count = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=count[1:], dtype=np.int32)
    return count[window:] - count[:-window]
