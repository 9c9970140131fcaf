"""Targets that a loss cannot take: no probabilities under a cross-entropy, which has no least value then, masks of 0
and 255 in an overlap, and labels of 0 under a loss whose labels are 1 and -1.

Source: the definition of the cross-entropy, -t log p - (1 - t) log(1 - p), which is positive for 0 <= t <= 1 only, and
of the losses of pairs in PyTorch.
"""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run


def targets_outside(run: Run) -> Iterator[Finding]:
    """Labels that were corrected for noise lie outside as well, by design: under them the loss finds a floor. One at
    which there is no gradient at all is where the logarithm was cut off."""
    history = signals.loss(run)
    outside = signals.median(signals.column(run, "unreachable_fraction")[1])
    path = signals.loss_path(run)
    falling = signals.trend(history.after(history.middle_step))
    norms = signals.inside(run, "grad_norm", history.middle_step, history.last_step)
    cut_off = "log" in path and not path.startswith("relu") and signals.median(norms) == 0
    if not ("binary_cross_entropy" in path or cut_off) or not outside > 0 or not history.end < 0:
        return
    if not cut_off and not (falling.z > 3 and falling.drop > abs(history.start)):
        return
    below = int(history.steps[(history.values < 0).argmax()])
    yield found(
        "targets-outside",
        run,
        (
            f"The binary cross-entropy is below 0 since step {below} and ended at {number(history.end)}: "
            f"{number(100 * outside)} % of its targets do not lie between 0 and 1. They give it no least value, and "
            f"the outputs grow without end{', up to where the logarithm is cut off' if cut_off else ''}."
        ),
        (
            "map the labels to 0 and 1: (labels + 1) / 2 of -1 and 1, labels - 1 of 1 and 2",
            "where they are numbers of more than two classes: as many outputs, and F.cross_entropy",
            "or use F.soft_margin_loss, whose labels are -1 and 1",
        ),
        evidence={"loss at end": history.end, "share of targets outside": outside},
        step=below,
        formula=r"-t\log p-(1-t)\log(1-p)\;\to\;-\infty \quad\text{where}\quad t \notin [0, 1]",
        chart=Chart("line", "scalars", ("weight_norm",), "Norm of the weights"),
    )


def masks_outside(run: Run) -> Iterator[Finding]:
    """Told once the loss shows it: probabilities may also be multiplied with what each of them is worth."""
    history, height = signals.loss(run), float(run.meta["mask_height"])
    if not height > 1 or not history.end < 0:
        return
    below = int(history.steps[(history.values < 0).argmax()])
    yield found(
        "targets-outside",
        run,
        (
            f"The masks that the loss compares probabilities with hold 0 and {number(height)}, not 0 and 1: an overlap "
            f"that is counted {number(height)} times takes the loss below 0 since step {below}, to "
            f"{number(history.end)} at the end. Beside it a pixel that is marked by mistake costs next to nothing, and "
            "what is marked becomes too large."
        ),
        (f"give the loss masks of 0 and 1: mask = (mask > 0).float(), or mask / {number(height)}",),
        evidence={"loss at end": history.end, "largest number in a mask": height},
        step=below,
        formula=r"\frac{2\sum p\,t}{\sum p + \sum t} \le 1 \quad\text{for}\quad t \in \{0, 1\}",
    )


_HINGE = "A hinge loss"
_OF_ZERO = {  # what an example whose label is 0 adds to the loss
    "cosine_embedding_loss": "nothing: only pairs that belong together are heard, and all are drawn together",
    "hinge_embedding_loss": "what 1 and -1 add, both: it is pulled nearer and pushed away",
    "soft_margin_loss": "log 2, whatever the output: it has no gradient",
    _HINGE: "max(0, 1 - 0 * output) = 1, whatever the output: it has no gradient",
}


def _by_hand(run: Run, *, measured: int = 2) -> tuple[str, float]:
    shares = signals.column(run, "zero_labels")[1]
    return (_HINGE, float(shares.mean())) if len(shares) >= measured and (shares > 0).all() else ("", 0.0)


def unsigned(run: Run) -> Iterator[Finding]:
    name, share = run.meta["unsigned"] or _by_hand(run)
    if name not in _OF_ZERO or not share > 0:
        return
    yield found(
        "targets-outside",
        run,
        (
            f"{name} takes labels of 1 and -1, but {number(100 * share)} % of the first ones are 0 and none is -1; "
            f"such an example adds {_OF_ZERO[name]}."
        ),
        ("map the labels to 1 and -1: 2 * labels - 1",),
        evidence={"share of labels that are 0": share},
        severity="warning",
    )
