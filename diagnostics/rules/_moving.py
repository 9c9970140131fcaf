"""Losses that become others while training, so that their height says nothing of what was learned.

In reinforcement learning the policy decides what is seen and the network makes its own targets (Sutton & Barto 2018,
11.3): a loss that rises may be a sign of success.
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules._raw_inputs import raw
from diagnostics.run import Run


def is_moving(run: Run) -> bool:
    """Only where no target is known, which would give the loss a measure of its own, and never of raw inputs, which do
    harm by themselves."""
    if is_of_a_policy(run):
        return True
    return not targets_known(run) and not raw(run) and (_inputs_move(run) or _rises_downhill(run))


def targets_known(run: Run) -> bool:
    """Whether the loss has a measure of its own, the one of the same answer to all: then a rise says something."""
    return len(signals.column(run, "constant_loss")[1]) > 0


def is_of_a_policy(run: Run) -> bool:
    """Whether the loss weighs logarithms of probabilities by what has both signs, as advantages (Williams 1992): an
    error made of them is above 0 at the start. It comes up to 0 as the policy becomes sure, and never towers. With an
    error of the values beside it, whose returns grow as the policy learns, it may."""
    if run.meta["policy"]:
        return True
    calls, history = signals.loss_calls(run), signals.loss(run)
    after = calls[calls.index("log_softmax") :] if "log_softmax" in calls else []
    below = history.count > 0 and bool(np.median(history.values[: history.window]) < 0)
    return "mul" in after and "logsumexp" not in after and below and bool(history.values.max() <= abs(history.start))


def _inputs_move(run: Run, *, measured: int = 9, times: float = 2.0, features: float = 0.1) -> bool:
    """Whether some of the input features were never again as small as in the first two batches measured, or as large,
    by that many `times`: of examples drawn from the same data one feature may be, but not one in ten."""
    _, _, sizes = run.matrix("inputs", "batch_rms")
    if len(sizes) < measured or np.isnan(sizes).any():
        return False
    first, late = sizes[:2], sizes[len(sizes) // 3 :]
    grew = (first.max(axis=0) > 0) & (times * first.max(axis=0) < late.min(axis=0))
    shrank = first.min(axis=0) > times * late.max(axis=0)
    return bool((grew | shrank).mean() >= features)


def _rises_downhill(run: Run, *, times: float = 2.0, measured: int = 10, short: float = 0.5) -> bool:
    """Whether the loss rises to `times` its start for a tenth of the run though updates go down on their own batches,
    not as far as to the minimum along them: then it is the loss that moves."""
    history = signals.loss(run)
    _, over = steps_made.overshoots(run)
    start = abs(signals.level(history.values[: history.window]))
    above = history.values > times * start
    return len(over) >= measured and bool(above.mean() >= 0.1) and 0 < signals.median(over) < short
