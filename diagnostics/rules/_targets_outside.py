"""Targets that are no probabilities, under a loss that takes them for some: it has no least value.

Source: the definition of the cross-entropy, -t log p - (1 - t) log(1 - p), which is positive for 0 <= t <= 1 only.
"""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

_LOSSES = {"binary_cross_entropy_with_logits", "binary_cross_entropy", "cross_entropy"}
_KEEP_SIGN = {"mean", "sum", "div"}


def targets_outside(run: Run) -> Iterator[Finding]:
    path, history = str(run.meta.get("loss_path") or "").split(" -> "), signals.loss(run)
    at = next((index for index, function in enumerate(path) if function in _LOSSES), None)
    if at is None or not set(path[at + 1 :]) <= _KEEP_SIGN or not history.end < 0:
        return
    below = int(history.steps[(history.values < 0).argmax()])
    yield found(
        "targets-outside",
        below,
        (),
        (
            f"The loss, {path[at]}, is below 0 since step {below} and ended at {number(history.end)}: for targets "
            "between 0 and 1 it never is. Others give it no least value, and the outputs grow without end."
        ),
        {"loss at end": history.end},
        (
            "map the labels to 0 and 1: (labels + 1) / 2 of -1 and 1, labels - 1 of 1 and 2",
            "or use F.soft_margin_loss, whose labels are -1 and 1",
        ),
        formula=r"-t\log p-(1-t)\log(1-p)\;\to\;-\infty \quad\text{where}\quad t \notin [0, 1]",
        chart=Chart("line", "scalars", ("weight_norm",), "Norm of the weights"),
    )
