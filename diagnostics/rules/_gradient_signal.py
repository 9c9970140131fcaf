"""How much of a batch's gradient is signal, and how much the noise of the batch.

Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", 2.2: under noise the best rate is that
part of the noiseless one.
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.run import Run


def share(run: Run, since: int) -> float:
    """Part of a batch's squared gradient that is signal: the cosine of successive gradients, |G|^2 / E|g|^2, or what
    independent batches say of it, where they prove that there is any and that is more.

    With a direction that turns by itself the cosine is smaller still: the safe side.
    """
    steps, cosines = signals.column(run, "gradient_cosine")
    late = cosines[steps >= since]
    by_batches = proved(run, since, errors=0) if proved(run, since) > 0 else 0.0
    if not len(late) and not by_batches:
        raise signals.Missing("scalars.gradient_cosine: none was measured that would tell gradients from their noise")
    along = float(np.clip(np.median(late), 0.0, 1.0)) if len(late) else 0.0
    return max(along, by_batches)


def surely(run: Run, since: int, *, least: int = 3) -> float:
    """The mean cosine of successive gradients, two standard errors down; 0 where it was not measured."""
    steps, cosines = signals.column(run, "gradient_cosine")
    late = cosines[steps >= since]
    if len(late) < least:
        return 0.0
    return float(np.clip(late.mean() - 2 * late.std(ddof=1) / np.sqrt(len(late)), 0.0, 1.0))


def proved(run: Run, since: int, errors: float = 2.0) -> float:
    """By all independent batches, so many standard errors down; 0 where none were tried."""
    table = run.table("batches", ["step", "gradient_square", "gradient_square_error", "gradient_noise"]).dropna()
    table = table.loc[table["step"] >= since]
    if table.empty:
        return 0.0
    squares, error, noise = (signals.array(table, str(name)) for name in table.columns[1:])
    square = squares.mean() - errors * np.linalg.norm(error) / len(error)
    return max(float(square), 0.0) / max(float(squares.mean() + noise.mean()), np.finfo(float).tiny)
