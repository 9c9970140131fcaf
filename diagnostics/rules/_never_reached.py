"""A schedule that never came near the rate that it leads to, since it is stepped once an epoch, or begins again with
each.

`OneCycleLR` writes that rate into the optimizer's groups, beside the one that it begins with; of a warm-up it is the
rate that the optimizer was given, which every scheduler keeps there. Source: lecture, "Learning Rate" ("α too small:
slow progress").
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run

LEADS_TO = "rate it leads to"
_CHARTS = Chart("line", "scalars", ("lr",), "Learning rate", log=True), LOG_LOSS
_LENGTHS = {
    "one-cycle schedule": "or give it its length in epochs: OneCycleLR(optimizer, max_lr, total_steps=epochs)",
    "warm-up": "or give it its length in epochs",
}


def never_reached(
    kind: str,
    run: Run,
    *,
    near: float = 0.5,  # of the highest rate of a one-cycle schedule, which is to come back down within the run
    far: float = 0.25,  # of the rate that a warm-up leads to: it would last for four such runs
    held: int = 5,  # updates that a rate lasts: stepped after each of them it lasts one, or a few passes' worth
) -> Iterator[Finding]:
    steps, rates = optimizer.learning_rates(run)
    if run.meta["status"] != "finished" or not len(rates):
        return
    cycle, warm_up = (_leads_to(run, name) for name in ("max_lr", "initial_lr"))
    rising = rates[-1] > rates[0] and not (np.diff(rates) < 0).any()
    lasted = len(rates) / (1 + np.count_nonzero(np.diff(rates)))
    if not lasted >= held:  # a run that was meant to be short
        return
    if rates.max() < near * cycle:
        yield _finding(kind, "one-cycle schedule", cycle, steps, rates, lasted)
    elif not cycle and rising and rates.max() < far * warm_up:
        yield _finding(kind, "warm-up", warm_up, steps, rates, lasted)


def begins_again(
    kind: str,
    run: Run,
    *,
    back: float = 0.1,  # of the rate, that a new beginning leaves at most: no schedule of steps falls as far at once
    times: int = 3,  # once may be a new stage, and twice chance
) -> Iterator[Finding]:
    """A warm-up that was still rising each time: restarts on purpose come after a decay, and begin with the highest."""
    steps, rates = optimizer.learning_rates(run)
    falls = np.flatnonzero(rates[1:] < back * rates[:-1]) + 1
    rises = [part[-1] > part[: len(part) // 2 + 1].max() for part in np.split(rates, falls)[:-1]]
    if len(falls) < times or not all(rises):
        return
    yield Finding(
        kind,
        "schedule",
        "warning",
        int(steps[0]),
        None,
        (),
        (
            f"The warm-up begins anew again and again: {len(falls)} times the learning rate rose to about "
            f"{number(np.median(rates[falls - 1]))} and fell back to {number(np.median(rates[falls]))} while it was "
            f"still rising, every {number(np.median(np.diff(falls)))} updates, as if the scheduler were given the step "
            "within the epoch."
        ),
        {"highest rate": float(rates.max()), "times that it began anew": float(len(falls))},
        (
            "give the scheduler the number of all updates so far: scheduler.step(epoch * len(loader) + i)",
            "make scheduler and optimizer once, before the first epoch",
        ),
        _CHARTS,
    )


def _leads_to(run: Run, name: str) -> float:
    groups = run.meta["hyperparameters"]
    return min((float(group.get(name) or 0.0) for group in groups), default=0.0)


def _finding(kind: str, schedule: str, rate: float, steps: np.ndarray, rates: np.ndarray, lasted: float) -> Finding:
    return Finding(
        kind,
        "schedule",
        "warning",
        int(steps[0]),
        None,
        (),
        (
            f"The {schedule} never came near its learning rate of {number(rate)}: the highest in {len(rates)} updates "
            f"was {number(rates.max())}, and each lasted {number(lasted)} updates, as if the scheduler were stepped "
            "once an epoch."
        ),
        {LEADS_TO: rate, "highest rate": float(rates.max()), "updates a rate lasted": lasted},
        ("call scheduler.step() after every optimizer.step()", _LENGTHS[schedule]),
        _CHARTS,
    )
