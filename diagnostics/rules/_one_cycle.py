"""A one-cycle schedule that never came near its highest rate, since it is stepped once an epoch.

`OneCycleLR` writes the rate that it leads to into the optimizer's groups, beside the one that it begins with. Source:
lecture, "Learning Rate" ("α too small: slow progress").
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run


def one_cycle(
    kind: str,
    run: Run,
    *,
    near: float = 0.5,  # of the highest rate
    held: int = 5,  # updates that a rate lasts: stepped after each of them it lasts one, or a few passes' worth
) -> Iterator[Finding]:
    groups = run.meta.get("hyperparameters") or []
    highest = min((float(group.get("max_lr") or 0.0) for group in groups), default=0.0)
    steps, rates = signals.learning_rates(run)
    if run.meta["status"] != "finished" or not len(rates) or not rates.max() < near * highest:
        return
    lasted = len(rates) / (1 + np.count_nonzero(np.diff(rates)))
    if not lasted >= held:  # a run that was meant to be short
        return
    yield Finding(
        kind,
        "schedule",
        "warning",
        int(steps[0]),
        None,
        (),
        (
            f"The one-cycle schedule never came near its learning rate of {number(highest)}: the highest in "
            f"{len(rates)} updates was {number(rates.max())}, and each lasted {number(lasted)} updates, as if the "
            "scheduler were stepped once an epoch."
        ),
        {"rate it leads to": highest, "highest rate": float(rates.max()), "updates a rate lasted": lasted},
        (
            "call scheduler.step() after every optimizer.step()",
            "or give it its length in epochs: OneCycleLR(optimizer, max_lr, total_steps=epochs)",
        ),
        (
            Chart("line", "scalars", ("lr",), "Learning rate", log=True),
            Chart("line", "scalars", ("loss",), "Loss", log=True),
        ),
    )
