"""Targets that are all of one class: the bias of the last layer answers them, and no more is asked of the model."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run

NEXT_TO_NOTHING = 0.01  # of the first loss: less than one example of another class in a batch costs


def one_class(run: Run, *, measured: int = 3, left: float = 0.1, apart: float = 1.5) -> Iterator[Finding]:
    """Where no late batch costs more than `left` of the first loss, nor `apart` times as much as those about it, as one
    with an example of another class would; and where that bias is there: of scores that are compared with each other,
    as in a contrast, the first is the right one by convention."""
    steps, classes = signals.column(run, "one_class")
    history = signals.loss(run)
    late = history.after(history.middle_step)
    if len(classes) < measured or not classes[-1] or not _ends_in_bias(run, int(classes[-1])):
        return
    if not 0 <= late.min() <= late.max() <= left * history.start:
        return
    if late.max() > NEXT_TO_NOTHING * history.start and not (late <= apart * _about_each(late)).all():
        return
    yield found(
        "one-class",
        run,
        (
            f"All targets are of one class: of {int(classes[-1])} classes, at each of the {len(classes)} updates up to "
            f"step {int(steps[-1])} that were looked at. The loss of {number(history.end)} says nothing, as the last "
            "bias alone brings it to 0."
        ),
        (
            "look at the labels as the loss gets them, torch.unique(target): a conversion to integers cuts 0.5 or "
            "1/255 down to 0, a mask that is resized or divided by 255 loses its classes",
            "or count the classes of the whole data set: a filter or a split may have left one",
        ),
        evidence={"loss at end": history.end, "updates whose targets were seen": float(len(classes))},
        severity="warning",
        chart=Chart("line", "layers", ("grad_norm",), "Gradient norm of each tensor", log=True),
    )


def _about_each(values: np.ndarray, *, reach: int = 5) -> np.ndarray:
    """The median of those up to `reach` places away."""
    padded = np.pad(values, reach, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)


def _ends_in_bias(run: Run, classes: int) -> bool:
    layers = run.meta["layers"] or [{}]
    return list(layers[-1].get("shape") or []) == [classes]
