"""The stability ratio over steps against the bands in which this optimizer decays, oscillates or is unstable."""

import altair as alt
import numpy as np
import pandas as pd

from diagnostics.charts import own, parts
from diagnostics.charts.lines import whole
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.charts.reduce import largest_of
from diagnostics.charts.theme import BLUE, GREEN, GREY, VERMILION
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

LOWEST, HIGHEST = 1e-8, 1e4  # the axis at most: twelve decades, of which each is some ten pixels high
ROOM = 1.5  # beyond the first and the last
THIN = 0.08  # of the axis: a band that is lower has no room for its name
NO_RATIO = "No stability ratio is known for the steps of {}"


def stability(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    data = ratios(run)
    if data.empty:
        measured_at_all = not run.table("curvature", ["step"]).empty
        return parts.empty(NO_RATIO.format(run.meta["optimizer"]) if measured_at_all else no_curvature(run))
    first, last = whole(run)
    x = parts.step_axis()
    low, high = limits(data["stability"].to_numpy())
    y = parts.value_axis("stability", "stability ratio s", log=True, domain=(low, high))
    border = own.swings_above(run, float(data["oscillation_limit"].iloc[-1]))
    shown = data.iloc[largest_of(data["step"].to_numpy(), data["ratio"].to_numpy())]
    return parts.layer(
        [
            *bands(border, x, y, first, last, low, high),
            parts.whole_run(x, first, last),
            *parts.span_layers(finding, x, first, last),
            *measured(shown, x, y),
            *beyond(shown, x),
        ],
        chart.title + parts.thinned(data),
    )


def no_curvature(run: Run) -> str:
    return "No curvature was recorded in this run" + ("" if run.meta["closure"] else ": pass closure= to monitor.step")


def ratios(run: Run) -> Frame:
    """step, ratio, error, oscillation_limit where a ratio was measured; `stability` is NaN where the axis ends before
    it, as it does where nothing curves upwards: the ratio is then no more than 0."""
    columns = ["step", "stability", "oscillation_limit", "preconditioned", "preconditioned_residual"]
    data: Frame = run.table("curvature", columns)
    data = data[np.isfinite(data["stability"])].copy()
    data["error"] = (data["stability"] * data["preconditioned_residual"] / data["preconditioned"]).abs().fillna(0.0)
    data["shown"] = data["stability"].map("{:.3g}".format)
    data["ratio"] = data["stability"]
    data["stability"] = data["ratio"].where(data["ratio"].between(LOWEST, HIGHEST))
    data["below"] = (data["stability"] - data["error"]).clip(lower=LOWEST)
    data["above"] = (data["stability"] + data["error"]).clip(upper=HIGHEST)
    return data


def limits(values: np.ndarray) -> tuple[float, float]:
    """The axis always holds the limit, with a decade below it at least, and every value within its ends."""
    values = values[np.isfinite(values)]
    return min(0.1, values.min(initial=1.0) / ROOM), max(4.0, values.max(initial=1.0) * ROOM)


def bands(border: float, x: alt.X, y: alt.Y, first: float, last: float, low: float, high: float) -> parts.Layers:
    """What becomes of the steepest direction; where it is not known when it starts to swing, only whether it grows."""
    split = [(0.0, border, "decays", GREEN), (border, 1.0, "oscillates", GREY)]
    below = split if np.isfinite(border) else [(0.0, 1.0, "stable", GREEN)]
    rows = pd.DataFrame(
        [(first, last, max(start, low), end, name, colour) for start, end, name, colour in below if end > low]
        + [(first, last, 1.0, high, "unstable", VERMILION)],
        columns=["step", "until", "stability", "top", "band", "colour"],
    )
    lowest, highest = np.log(rows["stability"]), np.log(rows["top"])
    named = rows.loc[(highest - lowest) / np.log(high / low) >= THIN]
    base = alt.Chart(rows).encode(x=x, y=y)
    colour = alt.Color("colour:N", scale=None)
    rules = alt.Chart(rows.iloc[1:]).encode(x=x, y=y, x2="until:Q", color=colour)
    return [
        base.mark_rect(opacity=0.13, clip=True, tooltip=None).encode(x2="until:Q", y2="top:Q", color=colour),
        rules.mark_rule(strokeDash=[8, 4], strokeWidth=1.5, tooltip=None),
        alt.Chart(named)
        .mark_text(align="right", baseline="bottom", dy=-3, fontStyle="italic", fontSize=12, tooltip=None)
        .encode(x=alt.value("width"), y=y, text="band:N", color=colour),
    ]


def beyond(data: Frame, x: alt.X) -> parts.Layers:
    """Triangles on the edge of the axis, for the ratios that lie outside of it."""
    marks = []
    for outside, shape, inward, edge in (
        (data["ratio"] < LOWEST, "triangle-down", -5, alt.value("height")),
        (data["ratio"] > HIGHEST, "triangle-up", 5, alt.value(0)),
    ):
        rows = data.loc[outside, ["step", "shown"]]
        mark = alt.Chart(rows).mark_point(shape=shape, filled=True, size=60, opacity=1, color=BLUE, yOffset=inward)
        tooltip = [alt.Tooltip("step:Q", format=","), alt.Tooltip("shown:N", title="s")]
        marks += [mark.encode(x=x, y=edge, tooltip=tooltip)]
    return marks


def measured(data: Frame, x: alt.X, y: alt.Y) -> parts.Layers:
    tooltip = [
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("shown:N", title="s"),
        alt.Tooltip("error:Q", format=".2g", title="± residual"),
    ]
    base = alt.Chart(data).encode(x=x, y=y, tooltip=tooltip)
    return [
        base.mark_rule(color=BLUE, opacity=0.6, clip=True).encode(y=alt.Y("below:Q"), y2="above:Q"),
        base.mark_line(color=BLUE, strokeWidth=2, clip=True),
        base.mark_circle(color=BLUE, size=35, opacity=1, clip=True),
    ]
