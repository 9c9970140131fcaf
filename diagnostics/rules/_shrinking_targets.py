"""Targets that the loss itself makes small.

Source: Grill et al. 2020 (BYOL), 3.1, and Chen & He 2021 (SimSiam): where a gradient reaches what a prediction is
compared with, to make both the same small number is the least loss there is.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number, tex
from diagnostics.run import Run


def shrinking_targets(
    run: Run,
    *,
    left: float = 0.01,  # of the targets' variance: a tenth of their size
    measured: int = 4,  # records: fewer show no course
) -> Iterator[Finding]:
    """Targets that depend on what is trained, whose variance goes with the loss."""
    steps, variances = signals.column(run, "target_variance")
    if len(variances) < measured or not variances[0] > 0:
        return
    history, late = signals.loss(run), float(variances[-1])
    if not (late <= left * variances[0] and history.end <= left * history.start):
        return
    gone = int(steps[np.flatnonzero(variances > left * variances[0])[-1] + 1])
    yield found(
        "shrinking-targets",
        run,
        (
            f"The loss trains its own targets, and makes them small: their variance came from {number(variances[0])} "
            f"to {number(late)}, and the loss with it from {number(history.start)} to {number(history.end)}. That "
            "says nothing of what was learned."
        ),
        (
            "compare with what is not trained: F.mse_loss(prediction, target.detach())",
            "scale targets by nothing that is trained, as by a norm with affine=False; where a network makes them, let "
            "it be an average of the weights, as in BYOL and data2vec",
        ),
        evidence={"variance of the targets at first": float(variances[0]), "variance of the targets": late},
        step=gone,
        formula=rf"\frac{{\operatorname{{var}} t}}{{\operatorname{{var}} t_0}} = {tex(late / variances[0])}",
        severity="warning",
        chart=Chart("line", "scalars", ("target_variance",), "Variance of the targets", log=True),
    )
