"""Per-layer quantities: which there are, as a heat map of all layers and as the history of one."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from diagnostics.charts.heatmap import Field, draw_field, in_model_order, picked
from diagnostics.charts.lines import draw_lines, whole
from diagnostics.charts.parts import Drawn
from diagnostics.rules import Finding
from diagnostics.run import Run


@dataclass(frozen=True)
class Quantity:
    """`column` of `table`, over `divisor` where there is one."""

    title: str
    table: str
    column: str
    divisor: str = ""
    log: bool = False
    worst_is_low: bool = False
    meaning: str = ""


QUANTITIES = {
    "Gradient norm": Quantity(
        "Gradient norm of each parameter tensor",
        "layers",
        "grad_norm",
        log=True,
        worst_is_low=True,
        meaning="Black is exactly zero: such a tensor does not learn. Colours that fade towards the first layers are "
        "vanishing gradients, colours that brighten to yellow are exploding ones.",
    ),
    "Update ratio": Quantity(
        "Size of the update relative to the weights",
        "layers",
        "update_norm",
        "weight_norm",
        log=True,
        worst_is_low=True,
        meaning="How far an update moves a tensor relative to its size: around 1e-3 is usual, below 1e-6 nothing "
        "happens, above 0.1 the weights are thrown about.",
    ),
    "Dead units": Quantity(
        "Share of dead units of each activation",
        "units",
        "dead_fraction",
        meaning="Units whose input was negative on every example: their weight derivatives are exactly zero.",
    ),
    "Saturated units": Quantity(
        "Share of saturated units of each activation",
        "units",
        "saturated_fraction",
        meaning="Units in the flat region of their activation function on nearly all examples.",
    ),
    "Distinct units": Quantity(
        "Share of hidden units that differ from each other",
        "symmetry",
        "distinct_units",
        "units",
        worst_is_low=True,
        meaning="Below 1, some units have identical weights; gradient descent will keep them identical.",
    ),
}


def field(run: Run, quantity: Quantity) -> Field | None:
    """The quantity of every layer, in the order of the model; `None` if it was not recorded."""
    steps, names, values = run.matrix(quantity.table, quantity.column, copy=False)
    if quantity.divisor and len(steps):
        with np.errstate(divide="ignore", invalid="ignore"):
            values = values / run.matrix(quantity.table, quantity.divisor, copy=False)[2]
    seen = np.asarray(np.isfinite(values).any(axis=0))
    order = [i for i in in_model_order(run, names) if seen[i]]
    if not order:
        return None
    rows = [str(names[i]) for i in order]
    return Field(quantity.title, steps, rows, picked(values, order), quantity.log, quantity.worst_is_low)


def heat_map(run: Run, quantity: Quantity, finding: Finding | None = None) -> Drawn:
    """All layers; a click on a cell selects it as "cell"."""
    return draw_field(_recorded_field(run, quantity), finding, whole(run), name="cell")


def _recorded_field(run: Run, quantity: Quantity) -> Field:
    found = field(run, quantity)
    assert found is not None  # a page offers what is recorded only
    return found


def extremes(run: Run, quantity: Quantity) -> pd.DataFrame:
    """layer, first, last, smallest, largest."""
    found = _recorded_field(run, quantity)
    with np.errstate(all="ignore"):
        ends = {"smallest": np.fmin.reduce(found.values), "largest": np.fmax.reduce(found.values)}
    return pd.DataFrame({"layer": found.names, "first": found.values[0], "last": found.values[-1], **ends})


def recorded(run: Run) -> dict[str, Quantity]:
    """The quantities this run has at all."""
    return {
        name: quantity
        for name, quantity in QUANTITIES.items()
        if np.isfinite(run.matrix(quantity.table, quantity.column, copy=False)[2]).any()
    }


def history(run: Run, quantity: Quantity, layer: str, finding: Finding | None = None) -> Drawn:
    """One layer's values over the updates."""
    field = _recorded_field(run, quantity)
    series = {layer: (field.steps, field.values[:, field.names.index(layer)])}
    return draw_lines(series, f"{field.title}: {layer}", log=field.log, finding=finding, limits=whole(run))
