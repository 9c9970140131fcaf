"""Examples that come in the order of their targets, so that each batch unlearns what the ones before it taught.

Source: analysis of variance: of targets in random order, as many differ within a batch as between batches.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import LITTLE, explained_late
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._recurrence import AGAIN, recurrence
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

_SURELY = 3.0  # standard errors


def in_order(
    run: Run,
    *,
    alike: float = 0.15,  # of the targets' variance is left within a batch: in random order all of it
    measured: int = 5,
    worse: float = 2.0,  # times the loss of the same answer to all: what was learned is wrong for the next examples
    often: float = 0.01,  # of the later half's updates; and on average it does no better than that answer
    teeth: float = 6.0,  # standard errors by which most steps of a level are down: enough without coming again
) -> Iterator[Finding]:
    _, spread = signals.column(run, "target_spread")
    history = signals.loss(run)
    half = history.middle_step
    steps, constants = signals.column(run, "constant_loss")
    constants = constants[steps >= half]  # targets may drift, as those that the model makes itself
    if len(spread) < measured or not len(constants) or not spread[-1] < alike:
        return
    late, constant = history.after(half), float(np.mean(constants))
    wrong = float((late > worse * constant).mean())
    if not (constant > 0 and float(late.mean()) >= signals.LEARNED * constant):
        return
    normed = any("BatchNorm" in each["type"] for each in run.meta["modules"])
    worse_by_norm = normed and explained_late(run).share < -LITTLE
    recurs, downhill = recurrence(late).correlation >= AGAIN, _downhill(late)
    if not (wrong >= often or downhill > teeth or (recurs and (worse_by_norm or downhill > _SURELY))):
        return
    how = (
        f"{'the same losses come again in each epoch' if recurs else 'the loss falls in most updates and jumps back'}, "
        f"{number(float(late.mean()))} on average, and the same answer to all would have {number(constant)}."
    )
    if wrong >= often:
        told = (
            "Each batch teaches one answer, and where the answer changes the loss jumps to up to "
            f"{number(float(late.max()))}; that of the same answer to all is {number(constant)}."
        )
    elif worse_by_norm and recurs:
        told = f"A batch norm takes out what a batch has in common: {how}"
    else:
        told = f"Each batch teaches one answer, and the next ones unlearn it: {how}"
    yield found(
        "in-order",
        run,
        (
            f"The examples come in the order of their targets: only {number(100 * spread[-1])} % of what the targets "
            f"differ by is left within a batch. {told}"
        ),
        ("shuffle the training examples: DataLoader(..., shuffle=True), or a permutation of the indices an epoch",),
        evidence={
            "within batches": float(spread[-1]),
            "share of updates far off": wrong,
            "loss of a constant": constant,
        },
        severity="critical" if wrong >= often else "warning",
        chart=Chart("line", "scalars", ("target_spread",), "Targets' variance within batches, over that of all"),
    )


def _downhill(values: np.ndarray) -> float:
    """By how many standard errors most steps of a series that has no trend are down, so that it rises in few: a
    sawtooth, where each batch helped the next one, and the change of the answer cost at once what they had gained. A
    noisy level goes up as often as down."""
    steps = np.diff(values)
    steps = steps[steps != 0]
    falls = signals.trend(values)
    if not len(steps) or (falls.z > _SURELY and falls.relative > 0.1):
        return 0.0
    return float(((steps < 0).mean() - 0.5) / (0.5 / len(steps) ** 0.5))
