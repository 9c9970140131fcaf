"""Examples that come in the order of their targets, so that each batch unlearns what the ones before it taught.

Source: analysis of variance: of targets in random order, as many differ within a batch as between batches.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import LEARNED, found
from diagnostics.rules._words import number
from diagnostics.run import Run


def in_order(
    run: Run,
    *,
    alike: float = 0.15,  # of the targets' variance is left within a batch: in random order all of it
    measured: int = 5,
    worse: float = 2.0,  # times the loss of the same answer to all: what was learned is wrong for the next examples
    often: float = 0.01,  # of the later half's updates; and on average it does no better than that answer
) -> Iterator[Finding]:
    _, spread = signals.column(run, "target_spread")
    history = signals.loss(run)
    half = int(history.steps[history.count // 2])
    steps, constants = signals.column(run, "constant_loss")
    constants = constants[steps >= half]  # targets may drift, as those that the model makes itself
    if len(spread) < measured or not len(constants) or not spread[-1] < alike:
        return
    late, constant = history.after(half), float(np.mean(constants))
    wrong = float((late > worse * constant).mean())
    if not (constant > 0 and wrong >= often and float(late.mean()) >= LEARNED * constant):
        return
    yield found(
        "in-order",
        signals.first_step(run),
        (),
        (
            f"The examples come in the order of their targets: only {number(100 * spread[-1])} % of what the targets "
            "differ by is left within a batch. Each batch teaches one answer, and where the answer changes the loss "
            f"jumps to up to {number(float(late.max()))}; that of the same answer to all is {number(constant)}."
        ),
        {"within batches": float(spread[-1]), "share of updates far off": wrong, "loss of a constant": constant},
        ("shuffle the training examples: DataLoader(..., shuffle=True), or a permutation of the indices an epoch",),
        chart=Chart("line", "scalars", ("target_spread",), "Targets' variance within batches, over that of all"),
    )
