"""Scores that a loss takes for log-probabilities: it falls without end, and nothing is compared.

Source: PyTorch's `nll_loss`, which picks the target's entry and changes its sign.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number, shape_of
from diagnostics.run import Run

LIKELY = 0.5  # the probability of the right class, from which it is told apart more often than not
OFF = 0.1  # of log 1: what rounding or an epsilon makes of a softmax is far less
# Of one softmax; log_softmax and nll_loss are written as cross_entropy.
_OF_CLASSES = re.compile(
    r"^((softmax -> )?cross_entropy|softmax -> ((log -> )?nll_loss|binary_cross_entropy|mse_loss))$"
)


def log_scores(run: Run, *, measured: int = 3) -> Iterator[Finding]:
    along = _softmax_along_batch(run)
    if along is not None:
        yield found("log-scores", run, along.seen, along.remedies, formula=along.formula, severity="warning")
        return
    steps, totals = signals.column(run, "log_total")
    if len(totals) < measured or not float(np.median(totals)) > OFF:
        return
    history, total = signals.loss(run), float(np.median(totals))
    normalized = "cross_entropy" in signals.loss_path(run)  # log_softmax and nll_loss, in this order
    if _are_probabilities(run):  # bounded, and some train with it on purpose
        said, severity = _without_logarithm(history.end), "info" if history.end <= -LIKELY else "warning"
    else:
        said = _along_another(total, history.end) if normalized else _unnormalized(total, history.end)
        severity = "critical" if history.end < 0 else unless_it_learns(run, "warning")
    yield found(
        "log-scores",
        run,
        said.seen,
        said.remedies,
        evidence={"logarithm of the sum": total, "loss at end": history.end},
        step=int(steps[0]),
        formula=said.formula,
        severity=severity,
        chart=Chart("line", "scalars", ("log_total",), "Logarithm of the sum of what should be probabilities"),
    )


def ctc_scores(run: Run) -> Iterator[Finding]:
    """Whatever is learned: sums over all ways to write a text mean nothing if these are no chances."""
    total = float(run.meta["ctc_total"])
    if not total > OFF:
        return
    yield found(
        "log-scores",
        run,
        (
            "F.ctc_loss is given scores that are no log-probabilities: their exponentials do not add up to 1 over the "
            f"classes (the logarithm of the sum is typically {number(total)} in size). Raising the scores of the "
            f"target's classes lowers the loss, whatever the others have. It ended at {number(signals.loss(run).end)}."
        ),
        (
            "F.ctc_loss(F.log_softmax(scores, dim=-1), ...): of scores (time, batch, classes) the classes come last",
            "log_softmax without dim takes the first dimension of three, which is time",
        ),
        evidence={"logarithm of the sum": total},
        formula=r"\sum_c p_{tc} = 1 \quad\text{at each time, } p_{tc} = e^{z_{tc}} / {\textstyle\sum_k} e^{z_{tk}}",
        severity="warning",
    )


def unlogged(run: Run) -> Iterator[Finding]:
    """Probabilities where their logarithms are expected: what comes of it is no divergence."""
    if not run.meta["unlogged"]:
        return
    yield found(
        "log-scores",
        run,
        (
            "F.kl_div is given probabilities where it expects their logarithms: what it returns is no divergence. It "
            "can fall below 0, and is least where all probability is on the target's largest entry, whatever the "
            f"target says of the others. The loss ended at {number(signals.loss(run).end)}."
        ),
        (
            "F.kl_div(F.log_softmax(scores, dim=-1), targets, reduction='batchmean')",
            "the answer comes first and the target second; a target in logarithms needs log_target=True",
        ),
        evidence={"loss at end": signals.loss(run).end},
        formula=r"t\,(\log t - p) \quad\text{instead of}\quad t\,(\log t - \log p)",
        severity="warning",  # another term may be what matters
    )


class _Said(NamedTuple):
    seen: str
    remedies: tuple[str, ...]
    formula: str


def _unnormalized(total: float, end: float) -> _Said:
    below = ", below 0, where minus the logarithm of a probability never is" if end < 0 else ""
    return _Said(
        "The loss takes the outputs for log-probabilities, but the sum of their exponentials is not 1 (its logarithm "
        f"is typically {number(total)} in size): raising the target's score lowers the loss without end, and the other "
        f"scores are never compared with it. It ended at {number(end)}{below}.",
        (
            "use F.cross_entropy on the scores in place of F.nll_loss",
            "or return F.log_softmax(scores, dim=1) from the model; log_softmax, not softmax",
        ),
        r"\mathcal{L} = -z_t \quad\text{instead of}\quad -z_t + \log \sum_c e^{z_c}",
    )


def _without_logarithm(end: float) -> _Said:
    return _Said(
        "The loss is minus the probability of the right class, not minus its logarithm: it expects log-probabilities "
        f"and is given what a softmax gives. That probability is {number(-end)} on average at the end, and multiplies "
        "the gradient of each example: the more wrong an answer is, the less is learned from it.",
        (
            "use F.cross_entropy on the scores, without a softmax in the model",
            "or return F.log_softmax(scores, dim=1) from the model; log_softmax, not softmax",
        ),
        r"\bar z_c = -p_t\,(\delta_{ct} - p_c) \quad\text{instead of}\quad p_c - \delta_{ct}",
    )


def _along_another(total: float, end: float) -> _Said:
    return _Said(
        "log_softmax is taken along another dimension than the classes, whose probabilities do not add up to 1 (the "
        f"logarithm of their sum is typically {number(total)} in size): a score is compared with others of its own "
        f"class, as at other times, not with those of the other classes. The loss ended at {number(end)}.",
        ("take log_softmax along the classes: dim=-1 where they come last",),
        r"\mathcal{L} = -z_{tc} + \log \sum_s e^{z_{sc}} \quad\text{instead of}\quad "
        r"-z_{tc} + \log \sum_k e^{z_{tk}}",
    )


def _softmax_along_batch(run: Run) -> _Said | None:
    """Of as many examples as classes the two cannot be told apart: contrastive losses take it along either."""
    dim, *shape = [int(each) for each in run.meta["loss_softmax"] or [0]]
    compares = _OF_CLASSES.search(signals.loss_path(run))
    if dim != 0 or len(shape) < 2 or shape[0] == shape[1] or not compares:
        return None
    return _Said(
        f"The softmax behind the last layer is taken along the batch: of scores of shape {shape_of(shape)}, along the "
        f"{shape[0]} examples. An example's score is compared with those of the others, and its probabilities of the "
        f"{shape[1]} classes do not add up to 1. The loss ended at {number(signals.loss(run).end)}.",
        ("take the softmax along the classes: dim=1, or nn.Softmax(dim=1), nn.LogSoftmax(dim=1)",),
        r"p_{nc} = \frac{e^{z_{nc}}}{\sum_m e^{z_{mc}}} \quad\text{instead of}\quad "
        r"\frac{e^{z_{nc}}}{\sum_k e^{z_{nk}}}",
    )


def _are_probabilities(run: Run) -> bool:
    return signals.loss_path(run).startswith("softmax")
