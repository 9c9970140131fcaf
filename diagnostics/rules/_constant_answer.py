"""A loss no lower than that of one answer to everything: nothing was learned from the inputs."""

import numpy as np

from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._below_linear import rival, said_of_linear
from diagnostics.rules._charts import do_they_belong, of_examples
from diagnostics.rules._explained import LITTLE, explained
from diagnostics.rules._far_off import BESIDE_A_CONSTANT
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._held_frozen import UNFREEZE, said_of_frozen
from diagnostics.rules._stretches import Flat
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

NOTHING_LEARNED = "nothing-learned"
_OF_PART = Chart(
    "line",
    "scalars",
    ("partial_loss", "partial_constant_loss"),
    "The part of the loss that compares, and that of the same answer to every input",
    log=True,
)
_OF_MEAN = Chart(
    "line",
    "scalars",
    ("answered_loss", "averaged_loss"),
    "The loss after each update, and that of the mean of the answers, given to every input",
    log=True,
)
_WEIGH = (
    "weigh the other terms of the loss less, or let them come in slowly: a divergence summed over a batch beside an "
    "error averaged over it pays for a code that says nothing"
)
_WORSE = (
    "bring the answers to the size of the targets, whose mean would do better: standardize the targets, normalize "
    "before the last layer, start it with smaller weights, or take noise such as dropout out"
)
BEND = "put a non-linearity between the layers, such as nn.ReLU()"
_START_LARGER = (
    "start with larger weights: all began so small that next to nothing of the inputs reaches the output; PyTorch's "
    "own initialization, or nn.init.xavier_uniform_, keeps their size from layer to layer"
)


def learned_nothing(
    kind: str,
    run: Run,
    stretch: Flat,
    *,
    within: float = 0.5,  # of the run, warm-up apart: a network that reads its inputs at all starts in the first half
    updates: int = 100,  # fewer do not tell a slow start from a loss that stays
    measured: int = 5,  # fewer have no standard error worth the name
    little: float = LITTLE,
) -> Finding | None:
    """For a loss that stands still at last: an alarm without a mechanism, which gives way to any that has one."""
    steps = signals.loss(run).steps
    first, last = _warmed_up(run), int(steps[-1])
    half = int(last - within * (last - first))
    found = explained(run, half, last, measured)
    if stretch.escaped or last - half < updates or not found.is_nothing(little):
        return None
    longer, beside = _longer_steps(run, half), rival(run, half)
    nothing_there = beside is not None and beside.learns_nothing
    worse = found.share + 3 * found.error < -little
    what = "The answers are worse than one that ignores the inputs" if worse else "Nothing was learned from the inputs"
    return Finding(
        kind,
        NOTHING_LEARNED,
        "warning",
        stretch.first_step,
        None,
        (),
        f"{what}: on the batches measured from step {half} to {last} the {found.what} is {number(found.loss)}, and "
        f"{found.constant_answer} would have {number(found.constant)}."
        f"{said_of_linear(beside)}{of_linear_layers(run)}{said_of_frozen(run)}",
        {
            "loss": found.loss,
            "loss of a constant answer": found.constant,
            "R squared": found.share,
            "its standard error": found.error,
        },
        (
            *([_WORSE] if worse else []),
            *([BEND] if of_linear_layers(run) else []),
            *([UNFREEZE] if said_of_frozen(run) else []),
            *([_START_LARGER] if _began_small(run) else []),
            *([_WEIGH] if len(signals.column(run, "partial_loss")[0]) and not found.averaged else []),
            *(() if nothing_there else longer),
            do_they_belong(run),
            "train on ten examples alone: if the loss reaches 0 there, the network can read its inputs, and it is the "
            "targets that do not follow from them",
            *(longer if nothing_there else ()),
            "where the loss does not reach 0 on ten examples, the inputs are lost on the way: a state that is detached "
            "at every step, a dimension that is averaged away, gradients that do not come back through time",
        ),
        (
            *of_examples(run),
            _OF_PART if found.partial else _OF_MEAN if found.averaged else BESIDE_A_CONSTANT,
            Chart("line", "scalars", ("gradient_cosine",), "Cosine of successive gradients: 0 is noise"),
        ),
        r"R^2 = 1 - \frac{\mathcal{L}}{\mathcal{L}_\text{constant}} = "
        rf"{tex(found.share)} \pm {tex(found.error)}",
    )


def _longer_steps(run: Run, since: int) -> tuple[str, ...]:
    """A remedy where thirty times the rate would still be stable: what grows out of nothing may only be slow."""
    known = limits.far_inside(run, since)
    highest = optimizer.highest_rate(run, signals.loss(run).last_step)
    if known is None or not known[0] > 0 or known[1] * highest / known[0] >= limits.FAR_INSIDE:
        return ()  # of a rate that was lowered until then, it is the schedule's
    return (
        f"raise the learning rate: {number(highest)} is {number(100 * known[1] * highest / known[0])} % of the largest "
        "stable one, and what grows from next to nothing, as at a saddle point, grows with the rate",
    )


def of_linear_layers(run: Run) -> str:
    layers = run.meta["linear_layers"]
    return (
        f" No non-linearity lies between its {layers} layers: together they are one, and what is not linear in the "
        "inputs is out of their reach."
        if layers
        else ""
    )


def _began_small(run: Run, *, passes: float = 0.1, least: int = 2) -> bool:
    """Whether each of several layers began by passing on less than a tenth of the size of what it was given."""
    _, names, norms = run.matrix("layers", "weight_norm", copy=False)
    shapes = {each["name"]: each["shape"] for each in run.meta["layers"]}
    gains = [
        float(norms[0, at]) / shapes[name][0] ** 0.5
        for at, name in enumerate(map(str, names))
        if len(norms) and len(shapes.get(name, [])) > 1
    ]
    return len(gains) >= least and max(gains) < passes


def _warmed_up(run: Run, *, arrived: float = 0.9) -> int:
    """The update at which the learning rate came to `arrived` of its largest value so far."""
    steps, rates = optimizer.learning_rates(run)
    return int(steps[np.argmax(rates >= arrived * rates.max())]) if len(rates) else signals.first_step(run)
