"""A loss that may have no least value: it falls below 0 and goes on, and nothing slows it down.

Near a minimum gradients shrink, and those of different batches turn against each other; of a score that is only to grow
they do neither.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _gradient_signal as gradient_signal
from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

FIRST = 3  # updates, whose losses are of the size that the untrained answers give it
PARTS = 5  # of the run, whose medians must all fall: in one of them a bounded loss would have slowed down


def no_floor(
    run: Run,
    *,
    updates: int = 100,
    times: float = 100.0,  # the size of the first losses; of a likelihood, or of what has a bound, it is some tens
    least: float = 1.0,  # of that size: a score that begins at 0 by symmetry has none, and one unit, or nat, is little
    steady: float = 0.75,  # of the fall of the first half in the second; of a decay to a floor it is below a half
    together: float = 0.7,  # cosine of successive gradients, 45 degrees; where noise or a ravine rules it is near 0
    kept: float = 0.5,  # of the gradient's length: other terms, which have a floor, had a part in the first ones
    measured: int = 2,
) -> Iterator[Finding]:
    history = signals.loss(run)
    if history.count < updates or not history.end < 0 or not np.isfinite(history.values).all():
        return
    begun = max(least, float(np.abs(history.values[:FIRST]).max()))
    levels = np.array([np.median(part) for part in np.array_split(history.values, PARTS)])
    falls = levels[:-1] - levels[1:]
    early, late = float(falls[:2].sum()), float(falls[2:].sum())
    if not (history.end < -times * begun and falls.min() > 0 and late >= steady * early):
        return
    until, since = (int(history.steps[history.count * quarter // 4]) for quarter in (1, 3))
    late_ones = len(gradient_signal.cosines(run, history.middle_step))
    cosines = gradient_signal.cosines(run, history.first_step)[-max(measured, late_ones) :]
    steps, norms = signals.column(run, "grad_norm")
    first, last = (signals.median(part) for part in (norms[steps < until], norms[steps >= since]))
    cosine = signals.median(cosines)
    if len(cosines) < measured or not cosine > together or not last >= kept * first:
        return
    below = int(history.steps[(history.values < 0).argmax()])
    yield found(
        "no-floor",
        run,
        (
            f"The loss is below 0 and does not slow down: it fell from {number(history.start)} to "
            f"{number(history.end)}, by {number(late)} in the second half of the run and {number(early)} in the "
            f"first. The gradients do not vanish ({number(last)} after {number(first)}), and still point the same way "
            f"(cosine {number(cosine)}): nothing seems to bound it, and larger weights lower it for ever."
        ),
        (
            "check the sign of each term: a log-likelihood or a reward that is to grow is subtracted",
            "bound what may grow without end: a critic by its gradient penalty or clipped weights, a score by a "
            "margin, a softplus or the logarithm of a sigmoid, a distance by normalized vectors",
        ),
        evidence={"loss at end": history.end, "loss at start": history.start, "cosine of successive gradients": cosine},
        step=below,
        formula=r"\mathcal{L}(c\,y) \to -\infty \quad\text{as}\quad c \to \infty",
        severity="warning",
        chart=Chart("line", "scalars", ("gradient_cosine",), "Cosine of successive gradients: 0 is noise"),
    )
