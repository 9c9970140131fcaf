"""Layer x step heat map: one PNG with real axes, and a coarse invisible grid for tooltips and clicks.

One rectangle a cell would be slow from 10,000 cells on and shows seams; the picture costs the same at any run length.
"""

import base64
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from diagnostics.charts import parts
from diagnostics.charts.lines import whole
from diagnostics.charts.parts import Drawn
from diagnostics.charts.reduce import bin_columns, worst
from diagnostics.charts.theme import VIRIDIS
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

COLUMNS = 600  # of the picture
GRID, CELLS = 60, 2_000  # columns and cells of the tooltips, at most
ROW = 18  # pixels a layer, as long as there are few
FURNITURE = 130  # pixels of title, legend and axis, which count as height
MOST_ROWS_LABELLED = 40
SHADES = 253  # of the palette; behind them:
MISSING, INFINITE, ZERO = 253, 254, 255


@dataclass(frozen=True)
class Field:
    """A per-layer quantity to draw: `values` (T, L) over `steps` (T,), layers in the order of the model."""

    title: str
    steps: NDArray
    names: list[str]
    values: NDArray
    log: bool = False
    worst_is_low: bool = False


def heatmap(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    field = read(run, chart)
    if field is None:
        return parts.empty(f"{chart.columns[0]}: not recorded in this run")
    return draw_field(field, finding, whole(run))


def read(run: Run, chart: Chart) -> Field | None:
    steps, names, values = run.matrix(chart.table, chart.columns[0], copy=False)
    chosen = [i for i in in_model_order(run, names) if not chart.layers or names[i] in chart.layers]
    values = picked(values, chosen)
    if not np.isfinite(values).any():
        return None
    low = chart.columns[0] in ("grad_norm", "update_norm", "distinct_units")
    return Field(chart.title, steps, [str(names[i]) for i in chosen], values, chart.log, low)


def picked(values: NDArray, columns: list[int]) -> NDArray:
    """These columns of values (T, L), without a copy where they are all of them in their order."""
    return values if columns == list(range(values.shape[1])) else values[:, columns]


def in_model_order(run: Run, names: Iterable[str]) -> list[int]:
    """Indices of `names` as the model lists its parameters; other names keep their recorded order behind them."""
    place = {layer["name"]: i for i, layer in enumerate(run.meta["layers"])}
    listed = list(names)
    return sorted(range(len(listed)), key=lambda i: (place.get(listed[i], len(place)), i))


def draw_field(
    field: Field, finding: Finding | None = None, limits: tuple[float, float] | None = None, name: str | None = None
) -> Drawn:
    """`name`: of a point selection over (layer, step) cells, for a page that follows clicks."""
    field = binned(field)
    low, high = colour_range(field.values, field.log)
    first, last = limits or (float(field.steps[0]), float(field.steps[-1]))
    rows = len(field.names)
    x = parts.step_axis()
    y = row_axis(field.names)
    height = min(max(rows * ROW, 60), 560) + FURNITURE
    layers = [
        parts.whole_run(x, first, last),
        picture(field, low, high, x, y, last),
        key(field, low, high, x, y),
        *parts.span_layers(finding, x, first, last)[1:],
        grid(field, x, y, name, last),
    ]
    return parts.layer(layers, field.title + _besides(field), height)


def _besides(field: Field) -> str:
    """What the colour scale does not say, where there is any."""
    zero, infinite = field.log and bool((field.values == 0).any()), bool(np.isinf(field.values).any())
    said = ", ".join(["black: 0"] * zero + ["red: infinite"] * infinite)
    return f" ({said})" if said else ""


def binned(field: Field) -> Field:
    """With at most `COLUMNS` columns, each the worst value of its steps."""
    steps, values = bin_columns(field.steps, field.values, COLUMNS, field.worst_is_low)
    return replace(field, steps=steps, values=values)


def colour_range(values: NDArray, log: bool) -> tuple[float, float]:
    """1st and 99th percentile of the finite (on a log scale positive) values; fractions keep 0 to 1."""
    finite = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(finite):
        return (0.1, 1.0) if log else (0.0, 1.0)
    if not log and finite.min() >= 0 and finite.max() <= 1:
        return 0.0, 1.0
    low, high = np.percentile(finite, [1, 99])
    return (low, high) if high > low else (low * 0.5 if log else low - 1, high * 2 if log else high + 1)


def row_axis(names: list[str]) -> alt.Y:
    """Rows from top to bottom, the layer names as labels, every n-th where they would not fit."""
    every = -(-len(names) // MOST_ROWS_LABELLED)
    labels = json.dumps([short(name) for name in names])  # as escapes all that could end a string of an expression
    axis = alt.Axis(
        values=[i + 0.5 for i in range(0, len(names), every)],
        labelExpr=f"{labels}[floor(datum.value)]",
        title=None, ticks=False, domain=False, grid=False, labelLimit=180,
    )  # fmt: skip
    return alt.Y("row:Q", scale=alt.Scale(domain=[0, len(names)], reverse=True, nice=False, zero=False), axis=axis)


def short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]


def until(field: Field, last: float) -> float:
    """Where the column of the last measured update ends: it is as wide as the one before, and within the run."""
    steps = field.steps
    end = float(steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1))
    return min(end, max(last, float(steps[-1]) + 1))


def picture(field: Field, low: float, high: float, x: alt.X, y: alt.Y, last: float) -> alt.Chart:
    row = {"step": float(field.steps[0]), "until": until(field, last), "row": 0, "bottom": len(field.names)}
    data = pd.DataFrame([row | {"url": png(on_even_steps(field, row["until"]), low, high, field.log)}])
    # tooltip=None: a tooltip made of the picture's own address costs a quarter of a second a pointer move
    mark = alt.Chart(data).mark_image(aspect=False, smooth=False, tooltip=None, clip=True)
    return mark.encode(x=x, x2="until:Q", y=y, y2="bottom:Q", url="url:N")


def on_even_steps(field: Field, end: float | None = None) -> NDArray:
    """Values (C, L) in columns of equal width up to `end`, as the axis says, though the spacings of the steps vary: in
    each the worst of its updates, or what was measured last before it."""
    steps, end = field.steps, until(field, math.inf) if end is None else end
    if len(steps) < 2 or np.ptp(np.diff([*steps, end])) == 0:
        return field.values
    ticks = np.linspace(steps[0], end, COLUMNS, endpoint=False)
    column, starts = np.unique(np.searchsorted(ticks, steps, side="right") - 1, return_index=True)
    filled = np.searchsorted(column, np.arange(COLUMNS), side="right") - 1
    return worst(field.values, starts, field.worst_is_low)[filled]


def png(values: NDArray, low: float, high: float, log: bool) -> str:
    """(C, L) -> data URL of an L x C picture: viridis, transparent where nothing was measured, black for exact zero
    on a log scale, red for infinity."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = (np.log(values) - np.log(low)) / (np.log(high) - np.log(low)) if log else (values - low) / (high - low)
    index = np.nan_to_num(np.clip(scaled, 0, 1) * (SHADES - 1), nan=0.0).astype(np.uint8)
    index[np.isnan(values)] = MISSING
    index[np.isinf(values)] = INFINITE
    if log:
        index[values == 0] = ZERO
    picture = Image.fromarray(np.ascontiguousarray(index.T))
    picture.putpalette(_palette().tobytes())  # a byte a pixel: half the size of full colours, and no time to compress
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=MISSING)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _palette() -> NDArray:
    """(256, 3) RGB: shades interpolated between the theme's ten colours, then the three special ones."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in VIRIDIS], float)
    at = np.linspace(0, len(stops) - 1, SHADES)
    shades = np.stack([np.interp(at, np.arange(len(stops)), stops[:, i]) for i in range(3)], axis=1)
    return np.concatenate([shades, [(0, 0, 0), (213, 94, 0), (0, 0, 0)]]).round().astype(np.uint8)


def key(field: Field, low: float, high: float, x: alt.X, y: alt.Y) -> alt.Chart:
    """Two invisible points that carry the colour scale, and so the legend."""
    at = float(field.steps[0])
    data = pd.DataFrame({"step": [at, at], "row": [0, 0], "value": [low, high]})
    scale = alt.Scale(type="log" if field.log else "linear", range=list(VIRIDIS))
    legend = alt.Legend(
        title=None, orient="top", direction="horizontal", gradientLength=200, labelExpr=parts.NUMBER_LABEL, tickCount=3
    )
    return (
        alt.Chart(data)
        .mark_point(opacity=0, tooltip=None)
        .encode(x=x, y=y, color=alt.Color("value:Q", scale=scale, legend=legend))
    )


def grid(field: Field, x: alt.X, y: alt.Y, name: str | None, last: float) -> alt.Chart:
    """Invisible cells under the pointer, at most `GRID` columns; a click selects one if `name` is
    given."""
    most = max(12, min(GRID, CELLS // len(field.names)))
    steps, values = bin_columns(field.steps, field.values, most, field.worst_is_low)
    ends = np.append(steps[1:], until(field, last))
    rows = len(field.names)
    data = pd.DataFrame(
        {
            "step": np.repeat(steps, rows).astype(float),
            "until": np.repeat(ends, rows).astype(float),
            "row": np.tile(np.arange(rows), len(steps)),
            "bottom": np.tile(np.arange(1, rows + 1), len(steps)),
            "layer": np.tile(np.array(field.names, dtype=object), len(steps)),
            "value": values.ravel().astype(float),
        }
    )
    cells = alt.Chart(data).mark_rect(opacity=0, clip=True)
    worst = "smallest" if field.worst_is_low else "largest"
    tips = [
        alt.Tooltip("layer:N"),
        alt.Tooltip("step:Q", format=",", title="from step"),
        alt.Tooltip("value:Q", format=".3g", title=f"{worst} value"),
    ]
    cells = cells.encode(x=x, x2="until:Q", y=y, y2="bottom:Q", tooltip=tips)
    return cells.add_params(alt.selection_point(name=name, fields=["layer"], on="click")) if name else cells
