"""A learning rate that a schedule had lowered and that came back, to the harm of what was learned meanwhile.

Source: lecture, "Learning Rate"; PyTorch, "Saving and loading a general checkpoint", of which a scheduler is a part.
"""

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._moving import is_moving
from diagnostics.rules._words import number
from diagnostics.run import Run


def raised_again(
    kind: str,
    run: Run,
    history: signals.Loss,
    *,
    times: float = 3.0,  # in one update: no cycle of many steps
    least: int = 20,  # updates at either rate
    risen: float = 0.1,  # of the loss before: less is seen on no plot
) -> Finding | None:
    """Once a schedule begins anew, as where its state was not restored, the rate stays high and the loss up. What
    begins again on purpose ends at a low rate; other data raise the loss before the first update at the new rate."""
    steps, rates = optimizer.learning_rates(run)
    at = _return(rates, times)
    if at is None or is_moving(run):
        return None
    step = int(steps[at])
    before, after = history.values[history.steps < step], history.after(step)
    low = int((steps[:at] > steps[:at][rates[:at] >= rates[at] / times][-1]).sum())  # updates at the lowered rate
    count = min(low, len(before), len(after) // 2)
    if count < least:
        return None
    both = np.concatenate([before[-count:], after[-count:]])
    change, usual = signals.trend(both), signals.level(before[-count:])
    spread = 3 * signals.step_noise(before[-count:])
    if not (change.z < -5 and change.relative < -risen and after[0] <= usual + spread):
        return None
    now = signals.level(after[-count:])
    return Finding(
        kind=kind,
        cause="schedule",
        severity="warning",
        first_step=step,
        last_step=None,
        layers=(),
        summary=(
            f"At step {step} the learning rate went back from {number(rates[at - 1])} to {number(rates[at])}, where it "
            f"had been before, and the loss from {number(usual)} to {number(now)}: steps of that length undo what the "
            "short ones had found."
        ),
        evidence={"learning rate": float(rates[at]), "rate before": float(rates[at - 1]), "loss before": usual},
        remedies=(
            "restore the scheduler with the rest of a checkpoint: scheduler.load_state_dict(state['scheduler'])",
            "or end the run where a cycle of the schedule ends, at its lowest rate",
        ),
        charts=(LOG_LOSS, Chart("line", "scalars", ("lr",), "Learning rate", log=True)),
    )


def _return(rates: np.ndarray, times: float) -> int | None:
    """Index of the last update at which the rate was raised in one go to about what it had been before it was lowered,
    if it stayed there."""
    jumps = np.flatnonzero(rates[1:] >= times * rates[:-1]) + 1
    if not len(jumps):
        return None
    at = int(jumps[-1])
    back = rates[:at].max() >= rates[at] / times and rates[at - 1] > 0
    return at if back and rates[at:].min() > rates[at] / times else None
