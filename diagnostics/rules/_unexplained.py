"""A loss that stands still, and nothing that is measured says why: what is known of it all the same.

Source: lecture, "Plateaux".
"""

from diagnostics.rules import _limits as limits
from diagnostics.rules import _signals as signals
from diagnostics.rules._below_linear import rival, said_of_linear
from diagnostics.rules._charts import LOSS_AND_GRADIENT, do_they_belong, of_examples
from diagnostics.rules._constant_answer import BEND, of_linear_layers
from diagnostics.rules._explained import Explained, explained_late
from diagnostics.rules._finding import Finding
from diagnostics.rules._held_frozen import UNFREEZE, said_of_frozen
from diagnostics.rules._raw_inputs import raw, standardize
from diagnostics.rules._stretches import Flat
from diagnostics.rules._verdict import HARDLY_LEARNED
from diagnostics.rules._words import number
from diagnostics.run import Run

MUCH = 0.5  # of the loss of a constant answer gone: a run that has learned, and need not be told to hurry
HARDLY = 0.1  # of it: as little may be noise known by heart, as of targets that belong to other inputs


def unexplained(kind: str, run: Run, stretch: Flat, found: Explained) -> Finding:
    late = explained_late(run)
    hardly = abs(late.share) < HARDLY
    known = None if found.share >= MUCH else limits.far_inside(run, signals.first_step(run))
    inside, longer = "", ()
    if known is not None:
        rate, ratio = known
        inside = f" The learning rate is {number(100 * ratio)} % of the largest stable one."
        longer = (f"try ten times the learning rate, {number(10 * rate)}",)
    seen = _hardly(run, stretch, late) if hardly else _stood(stretch, found)
    return Finding(
        kind,
        HARDLY_LEARNED if hardly else None,
        "info",
        stretch.first_step,
        None if hardly else stretch.ended,
        (),
        f"{seen}{inside}{of_linear_layers(run)}{said_of_frozen(run)}",
        {"loss": stretch.level, "share of the run": stretch.share},
        (
            *([BEND] if of_linear_layers(run) else []),
            *([UNFREEZE] if said_of_frozen(run) else []),
            *([standardize(run)] if raw(run) else []),
            *([do_they_belong(run)] if hardly else []),
            *longer,
            "overfit ten examples: if the loss reaches 0 there, the model and loop are sound and the data set the "
            "floor",
        ),
        (*(of_examples(run) if hardly else ()), *LOSS_AND_GRADIENT),
    )


def _stood(stretch: Flat, found: Explained) -> str:
    known = ""
    if 0 < found.share <= 1:
        known = (
            f" What was learned from the inputs takes {number(100 * found.share)} % off the loss of {_beside(found)}."
        )
    return f"The loss {stretch.stood}; nothing this tool measures explains it.{_floor(stretch)}{known}"


def _hardly(run: Run, stretch: Flat, late: Explained) -> str:
    less = f"{number(100 * abs(late.share))} % {'below' if late.share > 0 else 'above'} that of {_beside(late)}"
    beside = said_of_linear(rival(run, signals.loss(run).middle_step))
    return (
        f"Hardly anything was learned from the inputs: the loss {stretch.stood}, and over the later half of the run it "
        f"is {less}.{beside or _floor(stretch)}"
    )


def _floor(stretch: Flat) -> str:
    return "" if stretch.escaped else " It may be the floor that the data allow."


def _beside(found: Explained) -> str:
    part = ", in the part of it that compares outputs with targets" if found.partial else ""
    return ("the mean of all answers" if found.averaged else "the same answer to all") + part
