"""Scores that a loss takes for log-probabilities: it falls without end, and nothing is compared.

Source: PyTorch's `nll_loss`, which picks the target's entry and changes its sign.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run


def log_scores(
    run: Run,
    *,
    off: float = 0.1,  # of log 1: what rounding or an epsilon makes of a softmax is far less
    measured: int = 3,
) -> Iterator[Finding]:
    steps, totals = signals.column(run, "log_total")
    if len(totals) < measured or not float(np.median(totals)) > off:
        return
    history, total = signals.loss(run), float(np.median(totals))
    negative = history.end < 0
    below = ", below 0, where minus the logarithm of a probability never is" if negative else ""
    elsewhere = "cross_entropy" in str(run.meta.get("loss_path") or "")  # log_softmax and nll_loss, one after the other
    consequence = (
        "raising the target's score lowers the loss without end, and the other scores are never compared with it"
    )
    if elsewhere:
        consequence = (
            "log_softmax is taken along another dimension than the classes, and a score is compared with others "
            "of its class, as at other times, not with those of the other classes"
        )
    yield found(
        "log-scores",
        int(steps[0]),
        (),
        (
            "The loss takes the outputs for log-probabilities, but the sum of their exponentials is not 1 (its "
            f"logarithm is typically {number(total)} in size): {consequence}. It ended at {number(history.end)}{below}."
        ),
        {"logarithm of the sum": total, "loss at end": history.end},
        (
            ("take log_softmax along the classes: dim=-1 where they come last",)
            if elsewhere
            else (
                "use F.cross_entropy on the scores in place of F.nll_loss",
                "or return F.log_softmax(scores, dim=1) from the model; log_softmax, not softmax",
            )
        ),
        formula=r"\mathcal{L} = -z_t \quad\text{instead of}\quad -z_t + \log \sum_c e^{z_c}",
        severity="critical" if negative and not _are_probabilities(run) else unless_it_learns(run, "warning"),
        chart=Chart("line", "scalars", ("log_total",), "Logarithm of the sum of what should be probabilities"),
    )


def _are_probabilities(run: Run) -> bool:
    """A loss of minus a probability is bounded, and some train with it on purpose."""
    return str(run.meta.get("loss_path") or "").startswith("softmax")
