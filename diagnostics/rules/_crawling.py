"""Whether a run that is far from its limits is still on its way down at its end, with much ahead of it.

Source: lecture, "Learning Rate" (a rate far too small is slow progress).
"""

import numpy as np

from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.run import Run


def crawls(run: Run, history: signals.Loss, promised: float, learned: float, worth: float, reached: float) -> bool:
    """Still on its way down at the end, significantly, and with a good part of the loss within reach of a tenfold rate,
    or most of it left, and no trifle beside the loss it started from, unless the loss is a quadratic that says so.

    Far below the limits the loss depends on rate times updates alone: a tenfold rate is a run ten times as long. The
    fall from the third to the last quarter, 5/8 to 7/8 of the run, is carried on to that as a power of time; the one
    within the last quarter, 13/16 to 15/16, must not tell of a floor instead.
    """
    late, last = (signals.trend(history.values[-(history.count // part) :]) for part in (2, 4))
    floor = last.relative + 2 * last.error / max(abs(history.end), np.finfo(float).tiny)
    longer = min(_tenfold(late.relative, 7 / 5), _tenfold(floor, 15 / 13))
    surely = late.z > 3 or _steadily(history)
    far = longer > promised or history.end > (1 - learned) * history.start
    much = history.end > reached * history.start and longer * abs(history.end) >= worth * abs(history.start)
    return surely and far and (much or _quadratic_left(run, history) >= promised * history.end)


def _quadratic_left(run: Run, history: signals.Loss) -> float:
    """What is left to gain where the quadratic picture is exact, else NaN."""
    if not quadratic.exact(run):
        return np.nan
    condition, tops = signals.latest(run, "curvature", "condition"), signals.tops(signals.curvature(run))
    return quadratic.left(run, history, condition, float(tops[-1]))


def _steadily(history: signals.Loss) -> bool:
    """The whole run surely fell, and its later half no slower than its first, as far as the noise lets one see."""
    half = history.count // 2
    whole, first, second = map(signals.trend, (history.values, history.values[:half], history.values[half:]))
    return whole.z > 5 and second.z > 2 and second.drop + 2 * second.error >= first.drop


def _tenfold(fall: float, over: float) -> float:
    """The fall in ten times the time, where time grew by `over` during a relative fall, as a power of time."""
    return 1 - max(1 - fall, 0.0) ** (np.log(10) / np.log(over))
