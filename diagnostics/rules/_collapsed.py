"""Answers that are to be alike in pairs, or for one class, and became so for all inputs.

Source: Chen & He 2021 (SimSiam), whose answers collapse to one direction without the stop-gradient; Schroff et al. 2015
(FaceNet), whose hardest negatives make f(x) = 0 of an untrained network.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

_COSINES = ("pair_cosine", "left_cosine", "right_cosine")


def collapsed(
    run: Run,
    *,
    late: float = 0.25,  # of the run: from there on, as far as it was looked at
    measured: int = 2,
    left: float = 0.1,  # of how far strangers are apart at the start: a side that does not move keeps all of it
    no_nearer: float = 0.25,  # of how far strangers are apart, pairs are: those of answers that tell much, far less
    solved: float = 0.01,  # of the starting loss: one that keeps answers apart costs something as long as pairs differ
) -> Iterator[Finding]:
    table = run.table("scalars", ["step", *_COSINES]).dropna()
    if table.empty:
        yield from _without_pairs(run, late, measured, left)
        return
    steps, apart = table["step"].to_numpy(), (1 - table[list(_COSINES)].to_numpy(dtype=float)).clip(0)
    history = signals.loss(run)
    end = steps >= history.steps[int(late * history.count)]
    if end.sum() < measured or end.all():
        return
    of_pairs, strangers = apart[:, 0], apart[:, 1:]
    close = (strangers < left * strangers[0].clip(0, 1)).all(1)
    if close.all() or not close[end].all():
        return
    if (
        not 0 <= history.end <= solved * history.start
        and not np.median(of_pairs[end] / strangers[end].min(1)) > no_nearer
    ):
        return
    pair, at_first, now = of_pairs[-1], strangers[0].min(), strangers[-1].min()
    yield found(
        "collapsed",
        run,
        (
            "All answers became one: the mean distance (1 - cosine) between those to different inputs was "
            f"{number(at_first)} at first and is {number(now)} now; between the pairs that the loss asks to be alike "
            f"it is {number(pair)}. The loss of {number(history.end)} is low because the answers tell next to nothing "
            "of the inputs."
        ),
        (
            "stop the gradient of one side, z.detach(), and put a predictor behind the other, as in SimSiam; or let "
            "an average of the weights make that side, as in BYOL",
            "or add what keeps answers apart: other examples of the batch as negatives, as in SimCLR, or a term for "
            "the variance of each feature over the examples, z.var(0), as in VICReg: over the features, z.var(1), it "
            "is as large where all answers are one",
        ),
        evidence={"cosine of strangers": float(1 - now), "cosine of pairs": float(1 - pair)},
        step=int(steps[np.flatnonzero(~close)[-1] + 1]),
        formula=r"\cos(z_i, z_j) \to 1 \quad\text{for all } i, j",
        severity="warning",
        chart=Chart("line", "scalars", _COSINES, "Cosine of pairs, and of answers to different inputs"),
    )


def _without_pairs(
    run: Run,
    late: float,
    measured: int,
    left: float,
    *,
    rest: float = 0.1,  # of the starting loss: answers that are meant to be near each other cost next to nothing there
    falls: float = 0.05,  # of the loss, in the later half: what still falls is held by nothing
) -> Iterator[Finding]:
    table = run.table("scalars", ["step", "answers_cosine"]).dropna()
    if table.empty:
        return
    history, steps, apart = signals.loss(run), *table.to_numpy(dtype=float).T
    apart = (1 - apart).clip(0)
    end = steps >= history.steps[int(late * history.count)]
    stands = history.late_trend.relative < falls
    if end.sum() < measured or end.all() or not stands or not history.end > rest * history.start > 0:
        return
    close = apart < left * min(apart[0], 1.0)
    if close.all() or not close[end].all():
        return
    first, now = 1 - apart[0], 1 - float(np.median(apart[end]))
    yield found(
        "collapsed",
        run,
        (
            f"All answers became one: the mean cosine between those to different inputs was {number(first)} at first "
            f"and is {number(now)} now. The loss stands at {number(history.end)}, its value where no two inputs are "
            "told apart: where all distances are zero, so is the gradient that would part them."
        ),
        (
            "look at how the loss finds its negatives: a minimum over distances of which those to the same class were "
            "set to 0 is 0; set them to infinity, distances.masked_fill(same, float('inf'))",
            "begin with all or semi-hard negatives, or a lower learning rate: an untrained net pulls the hardest ones "
            "together (Schroff et al. 2015)",
            "or add what keeps answers apart: other examples of the batch as negatives, as in InfoNCE",
        ),
        evidence={"cosine of answers": now, "loss at end": history.end},
        step=int(steps[np.flatnonzero(~close)[-1] + 1]),
        formula=r"\cos(z_i, z_j) \to 1 \quad\text{for all } i, j",
        severity="warning",
        chart=Chart("line", "scalars", ("answers_cosine",), "Cosine of answers to different inputs"),
    )
