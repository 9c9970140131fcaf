"""Whether a schedule lowered the learning rate too early: while the loss still fell, or the gradient was still there.

Source: lecture, "Learning Rate".
"""

import numpy as np

from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import explained_late
from diagnostics.run import Run


def decay_step(steps: np.ndarray, rates: np.ndarray, decayed: float) -> int:
    """First update from which the rate stays below the share of its highest."""
    high = np.flatnonzero(rates >= decayed * rates.max())
    return int(steps[min(high[-1] + 1, len(steps) - 1)])


def cut_short(run: Run, history: signals.Loss, first: int, *, early: float = 0.5) -> bool:
    """Lowered in the first half, while the loss was seen to fall or, noise apart, the gradient was still there."""
    before = history.values[history.steps < first]
    was = signals.inside(run, "grad_norm", history.first_step, first)
    norms = signals.inside(run, "grad_norm", first, history.last_step)[-history.window :]
    if not len(before) or len(before) > early * history.count or not len(was) or not len(norms):
        return False
    alive = len(before) >= 6 and bool(np.median(norms) > 0.2 * np.median(was[-history.window :]))
    return (alive and _fell(run, history, first)) or gradient_left(run, history, first)


def spent_early(
    run: Run, history: signals.Loss, *, early: float = 0.25, rest: float = 0.25, least: int = 12
) -> int | None:
    """Update at which the rate was lowered for good, in the first quarter and while the loss still fell, so far that
    all later steps together are no more than a quarter as long as those before."""
    steps, rates = optimizer.learning_rates(run)
    if not len(rates):
        return None
    lowered = [decay_step(steps, rates, share) for share in (0.5, 0.1)]  # a fast decay halves it at once
    first = next((step for step in lowered if (history.steps < step).sum() >= least), lowered[-1])
    before = history.values[history.steps < first]
    shorter = rates[steps >= first].sum() <= rest * rates[steps < first].sum()
    few = not least <= len(before) <= early * history.count
    return None if few or not shorter or not _fell(run, history, first) else first


def gone_early(
    run: Run,
    downhill: bool,
    *,
    early: float = 0.25,
    left: float = 0.01,
    little: float = 0.05,
    at_once: float = 0.05,  # of the run: what it then waits is twenty times what it was given
    half: float = 0.5,
    nothing: float = 1e-6,  # of the highest rate: most weights of single precision stay as they are to the last bit
) -> int | None:
    """Update from which the rate is next to nothing of its highest, in the first quarter and before much was learned
    from the inputs, `little` of the loss of a constant answer at most: three quarters of the run wait for nothing. As
    much is learned where a schedule meant for epochs counts updates; and up to `half` where that cuts the fall of the
    loss short, and comes `at_once` or goes on to `nothing` for `half` of the run. Where the loss of a constant answer
    is not known, `downhill` is to say that most of the start's is left, and all of its gradient."""
    steps, rates = optimizer.learning_rates(run)
    if not len(rates):
        return None
    gone = decay_step(steps, rates, left)
    before = int((steps < gone).sum())
    if gone >= steps[-1] or before > early * len(steps):
        return None
    found, history = explained_late(run), signals.loss(run)
    learned = found.share + 3 * found.error
    if np.isnan(learned):
        return gone if downhill else None
    stands = (steps < decay_step(steps, rates, nothing)).sum() <= half * len(steps)
    waits = (before <= at_once * len(steps) or stands) and cut_short(run, history, gone)
    return gone if learned < (half if waits else little) else None


def _fell(run: Run, history: signals.Loss, first: int, *, few: int = 24, worth: float = 0.05) -> bool:
    """Significantly when the rate was lowered, and hardly since. Of few updates the noise hides a trend, but not that
    their later half lies above all that came after: by their rates, since a rate that sinks slows the fall itself. At
    the pace of their last quarter, the rest of the run might have taken `worth` off the loss."""
    before, after = history.values[history.steps < first], history.after(first)
    steps, rates = optimizer.learning_rates(run)
    made = np.cumsum(rates[np.searchsorted(steps, history.steps[history.steps < first])])
    half = before[made >= made[-1] / 2]
    falling = signals.trend(half if len(before) >= 12 else before)
    slower = signals.trend(after).drop / max(len(after), 1) < 0.2 * falling.drop / max(len(before), 1)
    above = 12 <= len(before) < few and half.mean() - after.mean() > 3 * after.std() / len(half) ** 0.5
    quarter = before[made >= 0.75 * made[-1]]
    last = signals.trend(quarter)  # of medians that lie half of it apart
    forgone = (last.drop + 2 * last.error) * len(after) / (len(quarter) / 2)
    return bool((falling.z > 3 or above) and slower and not forgone < worth * abs(history.end))


def gradient_left(run: Run, history: signals.Loss, first: int, *, forgone: float = 0.5) -> bool:
    """By the squared gradient without the batches' noise, the rest of the run at the old rate would have gained
    `forgone` of what was gained before: progress an update is the rate times that square. All updates since together
    must be shorter than those before."""
    rate_steps, rates = optimizer.learning_rates(run)
    before = int((history.steps < first).sum())
    was = signals.inside(run, "grad_norm", history.first_step, first)
    norms = signals.inside(run, "grad_norm", first, history.last_step)[-history.window :]
    if not len(was) or not len(norms):
        return False
    part = signal.surely_at_least(run, first)
    pace = part * np.median(norms**2) / np.median(was**2)
    shorter = rates[rate_steps >= first].sum() <= rates[rate_steps < first].sum()
    return bool(shorter and pace * (history.count - before) >= forgone * before)
