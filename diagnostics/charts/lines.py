"""Columns over steps, with the span of a finding shaded."""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts import parts
from diagnostics.charts.not_finite import EVERY_UPDATE, excused
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.charts.reduce import thin
from diagnostics.charts.theme import CATEGORIES, DASHES, GREY
from diagnostics.metrics import TABLES
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

LEGEND_ROW = 20  # pixels
MOST_LINES = 5  # as many as the palette tells apart
MOST_POINTS = 100  # of a line: as many as stand apart in half a page, each 6 pixels wide

SHARES = {  # of 1
    "dead_fraction",
    "saturated_fraction",
    "silent_fraction",
    "lost_fraction",
    "zero_fraction",
    "gradient_alignment",
    "dropout_noise",
}
SPOKEN = {  # columns whose names say too little beside another
    "constant_loss": "the same answer to every input",
    "linear_loss": "a linear model of the same inputs",
    "partial_loss": "the part that compares",
    "partial_constant_loss": "the same answer to every input",
    "answered_loss": "the answers as they are",
    "averaged_loss": "their mean, given to every input",
    "pair_cosine": "of a pair",
    "left_cosine": "between different inputs, first side",
    "right_cosine": "between different inputs, second side",
    "answers_cosine": "between answers to different inputs",
    "ordered_loss": "in order",
    "shuffled_loss": "steps shuffled",
}

Series = dict[str, tuple[NDArray, NDArray]]  # name -> steps (T,), values (T,)


def lines(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    """One line for each column, or for each of the chart's layers where the table has layers."""
    series = collect(run, chart)
    if not series:
        return parts.empty(why_empty(run, chart))
    domain = (0.0, 1.0) if set(chart.columns) <= SHARES else None
    return draw_lines(series, chart.title, log=chart.log, finding=finding, limits=whole(run), domain=domain)


def collect(run: Run, chart: Chart) -> Series:
    if TABLES[chart.table].key is None:
        recorded = [name for name in chart.columns if name in run.columns(chart.table)]
        frame: Frame = run.table(chart.table, ["step", *recorded])
        return {SPOKEN.get(name, name): column(run, frame, name) for name in recorded if frame[name].notna().any()}
    return {
        name if len(chart.columns) == 1 else f"{name} {column}": (steps, values)
        for column in chart.columns
        for name, (steps, values) in layer_series(run, chart.table, column, chart.layers).items()
    }


def why_empty(run: Run, chart: Chart) -> str:
    """Recorded as NaN throughout, lost with a damaged file, or never recorded."""
    columns, steps = ", ".join(chart.columns), run.steps(chart.table)
    faulty = [name for name in chart.columns if name in EVERY_UPDATE and len(excused(run, name)) < len(steps)]
    if faulty and chart.table == "scalars":
        return f"{columns}: NaN at every update, {len(steps):,} of {len(steps):,}"
    damaged = run.table("events").query("kind == 'damaged'")["subject"]
    lost = [file for file in damaged if file.startswith(f"{chart.table}-")]
    return f"{columns}: lost, {lost[0]} is damaged" if lost else f"{columns}: not recorded in this run"


def column(run: Run, frame: Frame, name: str) -> tuple[NDArray, NDArray]:
    """Steps and values; without those that would be marked as a fault and are none."""
    if name in EVERY_UPDATE:
        frame = frame[~frame["step"].isin(excused(run, name))]
    return frame["step"].to_numpy(), frame[name].to_numpy(float)


def layer_series(run: Run, table: str, column: str, layers: tuple[str, ...] = ()) -> Series:
    """The named layers of a per-layer column, at most `MOST_LINES`; without names, evenly chosen ones."""
    steps, names, values = run.matrix(table, column, copy=False)
    index_of = {name: i for i, name in enumerate(names)}
    index = [index_of[name] for name in layers if name in index_of] or list(range(len(names)))
    if len(index) > MOST_LINES:
        index = [index[i] for i in np.linspace(0, len(index) - 1, MOST_LINES).astype(int)]
    return {names[i]: (steps, values[:, i]) for i in index}


def whole(run: Run) -> tuple[float, float]:
    """First and last recorded update: every chart of a run shows the same stretch."""
    steps = run.table("scalars", ["step"])["step"]
    return (float(steps.iloc[0]), float(steps.iloc[-1])) if len(steps) else (0.0, 1.0)


def long_form(series: Series) -> Frame:
    """Columns step, value, series; thinned."""
    frames = []
    for name, points in series.items():
        steps, values = thin(*points)
        frames.append(pd.DataFrame({"step": steps, "value": values, "series": name}))
    return pd.concat(frames, ignore_index=True)


def draw_lines(
    series: Series,
    title: str,
    *,
    log: bool = False,
    finding: Finding | None = None,
    limits: tuple[float, float] | None = None,
    domain: tuple[float, float] | None = None,
    height: int = parts.HEIGHT,
    marked: Sequence[str] = EVERY_UPDATE,
    among: Sequence[str] = (),
    border: float | None = None,
) -> Drawn:
    """`marked`: names of series in which what is not finite is marked. `among`: all names that share the colours, where
    `series` may lack some. `border`: a value drawn as a dashed line."""
    together = np.concatenate([values for _, values in series.values()])
    log, domain = log and parts.wide(together), domain or parts.around_level(together)
    data = long_form(series)
    first, last = limits or (float(data["step"].min()), float(data["step"].max()))
    x = parts.step_axis()
    names = list(series)
    tooltip = [alt.Tooltip("step:Q", format=","), alt.Tooltip("value:Q", format=".4g", title=names[0])]
    points = alt.OverlayMarkDef(color=CATEGORIES[0], size=30) if len(data) <= MOST_POINTS * len(series) else False
    colour: Any = alt.value(CATEGORIES[0])
    shown = alt.Chart(data[data["value"] > 0] if log else data)
    line = shown.mark_line(strokeWidth=1.8, clip=True, point=points, color=CATEGORIES[0])
    line = line.encode(x=x, y=parts.value_axis("value", None, log=log, domain=domain), tooltip=tooltip)
    if len(among or names) > 1:  # a browser works out every channel at every point: one line needs neither
        colour, dash = told_apart(names, among or names)
        tooltip = [tooltip[0], alt.Tooltip("series:N", title=" "), alt.Tooltip("value:Q", format=".4g")]
        line = line.encode(color=colour, strokeDash=dash, tooltip=tooltip)
        height += LEGEND_ROW * (math.ceil(len(names) / columns_of(names)) - 1)  # which the height includes
    dense = [name for name in series if name in marked]
    bad = [part for name in dense for part in parts.non_finite_layers(*series[name], x, name)]
    zeros = data[data["value"] == 0].assign(note=data["series"] + " is exactly 0")
    floor = [parts.zero_marks(alt.Chart(zeros), x, color=colour)] if log else []
    around = [parts.whole_run(x, first, last), *parts.span_layers(finding, x, first, last)]
    rule = alt.Chart(pd.DataFrame({"value": [border]})).mark_rule(color=GREY, strokeDash=[8, 4], tooltip=None)
    limit = [rule.encode(y=parts.value_axis("value", None, log=log, domain=domain))] if border else []
    return parts.layer([*around, *limit, line, *floor, *bad], title, height)


def columns_of(names: list[str]) -> int:
    """Of a legend in half a page's width."""
    return 1 if max(map(len, names)) > 24 else 3


def told_apart(names: list[str], among: Sequence[str]) -> tuple[alt.Color, alt.StrokeDash]:
    """A colour and a dash for each of `among`, with the legend of `names`."""
    stroke = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolSize": 300}
    legend = alt.Legend(orient="bottom", title=None, labelLimit=400, columns=columns_of(names), values=names, **stroke)
    colours = alt.Scale(domain=list(among), range=[CATEGORIES[i % 5] for i in range(len(among))])
    dashes = alt.Scale(domain=list(among), range=[list(DASHES[i % 5]) for i in range(len(among))])
    return (
        alt.Color("series:N", scale=colours, legend=legend),
        alt.StrokeDash("series:N", scale=dashes, legend=legend),
    )
