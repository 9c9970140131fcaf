"""How much of a batch's gradient is signal, and how much the noise of the batch.

Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", 2.2: under noise the best rate is that
part of the noiseless one.
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.run import Run

ENOUGH = 16  # cosines: they spread by up to a half, so that two errors of the mean of so many are a quarter
SAME = 0.1  # of the loss: it stands where it is now


def share(run: Run, since: int) -> float:
    """Part of a batch's squared gradient that is signal: the cosine of successive gradients, |G|^2 / E|g|^2, or what
    independent batches say of it, where they prove that there is any and that is more.

    With a direction that turns by itself the cosine is smaller still: the safe side.
    """
    late = _enough(run, since)
    lowest, likely = _by_batches(run, since)
    by_batches = likely if lowest > 0 else 0.0
    if not len(late) and not by_batches:
        raise signals.Missing("scalars.gradient_cosine: none was measured that would tell gradients from their noise")
    along = float(np.clip(np.median(late), 0.0, 1.0)) if len(late) else 0.0
    return max(along, by_batches)


def surely_at_least(run: Run, since: int) -> float:
    """Two standard errors down, by the one or the other; 0 where neither was measured."""
    return max(surely(run, since), _by_batches(run, since)[0])


def surely(run: Run, since: int, *, least: int = 3) -> float:
    """The same by the mean cosine of successive gradients alone."""
    late = _enough(run, since)
    return float(np.clip(late.mean() - _two_errors(late), 0.0, 1.0)) if len(late) >= least else 0.0


def opposed(run: Run, since: int, *, least: int = 5) -> bool:
    """Whether successive gradients point against each other on average, by two standard errors."""
    late = cosines(run, since)
    return len(late) >= least and bool(late.mean() + _two_errors(late) < 0)


def cosines(run: Run, since: int) -> np.ndarray:
    """Measured cosines of successive gradients, from an update on."""
    steps, values = signals.column(run, "gradient_cosine")
    return values[steps >= since]


def _enough(run: Run, since: int) -> np.ndarray:
    """Those from an update on. Updates of a fraction of a millisecond are measured rarely later on: where that leaves
    too few, the last of all count, if the loss has stood since."""
    late, (steps, values) = cosines(run, since), signals.column(run, "gradient_cosine")
    if len(late) >= ENOUGH or len(values) < ENOUGH:
        return late
    before, now = (signals.median(part) for part in _losses(run, int(steps[-ENOUGH]), since))
    return values[-ENOUGH:] if abs(before - now) <= SAME * abs(now) else late


def _losses(run: Run, first: int, since: int) -> tuple[np.ndarray, np.ndarray]:
    steps, losses = signals.column(run, "loss")
    return losses[(steps >= first) & (steps < since)], losses[steps >= since]


def _two_errors(values: np.ndarray) -> float:
    return float(2 * values.std(ddof=1) / np.sqrt(len(values)))


def _by_batches(run: Run, since: int) -> tuple[float, float]:
    """By all independent batches together, two standard errors down and as they stand; zeros where none were tried."""
    table = run.table("batches", ["step", "gradient_square", "gradient_square_error", "gradient_noise"]).dropna()
    table = table.loc[table["step"] >= since]
    if table.empty:
        return 0.0, 0.0
    squares, errors, noise = (signals.array(table, str(name)) for name in table.columns[1:])
    square, error = float(squares.mean()), float(np.linalg.norm(errors) / len(errors))
    whole = max(square + float(noise.mean()), np.finfo(float).tiny)
    return max(square - 2 * error, 0.0) / whole, max(square, 0.0) / whole
