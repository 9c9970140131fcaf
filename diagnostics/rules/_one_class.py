"""Targets that are all of one class: the bias of the last layer answers them, and no more is asked of the model."""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run


def one_class(
    run: Run,
    *,
    measured: int = 3,
    left: float = 0.01,  # of the loss: where the first of many must be found, as in a contrast, far more stays
) -> Iterator[Finding]:
    steps, alike = signals.column(run, "one_class")
    history = signals.loss(run)
    if len(alike) < measured or not alike[-1] or not signals.has_learned(run, left):
        return
    yield found(
        "one-class",
        signals.first_step(run),
        (),
        (
            f"All targets that were seen, at {len(alike)} updates up to step {int(steps[-1])}, are of one class. The "
            f"loss of {number(history.end)} says nothing: an answer that ignores the inputs comes to 0 as well."
        ),
        {"loss at end": history.end, "updates whose targets were seen": float(len(alike))},
        (
            "look at the labels as the loss gets them, torch.unique(target): a conversion to integers cuts 0.5 or "
            "1/255 down to 0, a mask that is resized or divided by 255 loses its classes",
            "or count the classes of the whole data set: a filter or a split may have left one",
        ),
        severity="warning",
        chart=Chart("line", "layers", ("grad_norm",), "Gradient norm a tensor", log=True),
    )
