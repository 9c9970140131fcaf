"""Per-layer quantities: which there are, as a heat map of all layers and as the history of one."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts.heatmap import Field, binned, draw_field, in_model_order, picked
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
    steps, names, values = measured(run, quantity)
    seen = np.asarray(np.isfinite(values).any(axis=0))
    order = [i for i in in_model_order(run, names) if seen[i]]
    if not order:
        return None
    return Field(
        quantity.title, steps, names[order].tolist(), picked(values, order), quantity.log, quantity.worst_is_low
    )


def measured(run: Run, quantity: Quantity, layer: str | None = None) -> tuple[NDArray, NDArray, NDArray]:
    """steps (T,), names (L,), values (T, L); of one `layer` only, if given, which spares a long run the others."""

    def read(column: str) -> tuple[NDArray, NDArray, NDArray]:
        steps, names, values = run.matrix(quantity.table, column, copy=False)
        names = np.asarray(names, str)
        chosen = slice(None) if layer is None else names == layer
        return steps, names[chosen], values[:, chosen]

    steps, names, values = read(quantity.column)
    if quantity.divisor and len(steps):
        with np.errstate(divide="ignore", invalid="ignore"):
            values = values / read(quantity.divisor)[2]
    return steps, names, values


@dataclass(frozen=True)
class Overview:
    """`field`: with as many columns as a heat map draws. `extremes`: layer, first, last, smallest, largest."""

    field: Field
    extremes: pd.DataFrame


def overview(run: Run, quantity: Quantity) -> Overview:
    """All that a page shows of every layer, from one pass over the run."""
    full = field(run, quantity)
    assert full is not None  # a page offers what is recorded only
    with np.errstate(all="ignore"):
        ends = {"smallest": np.fmin.reduce(full.values), "largest": np.fmax.reduce(full.values)}
    extremes = pd.DataFrame({"layer": full.names, "first": full.values[0], "last": full.values[-1], **ends})
    return Overview(binned(full), extremes)


def heat_map(run: Run, field: Field, finding: Finding | None = None) -> Drawn:
    """All layers; a click on a cell selects it as "cell"."""
    return draw_field(field, finding, whole(run), name="cell")


def recorded(run: Run) -> dict[str, Quantity]:
    """The quantities this run has at all."""
    return {
        name: quantity
        for name, quantity in QUANTITIES.items()
        if np.isfinite(run.matrix(quantity.table, quantity.column, copy=False)[2]).any()
    }


def history(run: Run, quantity: Quantity, layer: str, finding: Finding | None = None) -> Drawn:
    """One layer's values over the updates."""
    steps, _, values = measured(run, quantity, layer)
    series = {layer: (steps, values[:, 0])}
    return draw_lines(series, f"{quantity.title}: {layer}", log=quantity.log, finding=finding, limits=whole(run))
