"""The training timeline: loss, norms and learning rate under one brush, with the findings as lanes and shading.

`specification` holds no data and `timeline_data.datasets` nothing else: a page sends the same specification with new
data at each zoom, so the browser keeps the chart and its brush.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import altair as alt

from diagnostics.charts import parts
from diagnostics.charts.parts import LOG_LABEL, NUMBER_LABEL, ROUND, STEP_LABEL, Drawn
from diagnostics.charts.theme import BLUE, GREEN, GREY, PINK, VERMILION

BRUSH = "brush"
LANE = 20  # pixels a finding


@dataclass(frozen=True)
class Panel:
    """Lines that share an axis: name -> colour, dash."""

    data: str
    title: str
    lines: dict[str, tuple[str, list[int]]]


LOSS = Panel("loss", "Loss", {"loss": (BLUE, [1, 0])})
SMOOTHED = Panel("loss", "Loss", {"loss": (GREY, [1, 0]), "smoothed": (BLUE, [1, 0])})
NORMS = Panel(
    "norms",
    "Norms",
    {"gradient norm": (BLUE, [1, 0]), "before clipping": (GREY, [2, 2]), "update norm": (GREEN, [6, 3])},
)
RATES = Panel(
    "lr",
    "Learning rate against the largest stable one",
    {"learning rate": (BLUE, [1, 0]), "largest stable rate": (VERMILION, [8, 4])},
)


@dataclass(frozen=True)
class Options:
    """What of a run shapes the chart; all else is data. A zoom must change none of it: that would remount it."""

    log_loss: bool = True
    log_rates: bool = False
    smoothed: bool = False
    lanes: int = 0  # findings
    start: tuple[float, float] | None = None  # what the brush holds at first


def specification(options: Options) -> dict[str, Any]:
    """The chart as Vega-Lite, with named, empty datasets."""
    with warnings.catch_warnings():  # one cross-hair in three panels is what is meant
        warnings.filterwarnings("ignore", message="Automatically deduplicated selection parameter")
        return stacked(options).to_dict()


def stacked(options: Options) -> Drawn:
    initial: Any = {"value": {"x": list(options.start)}} if options.start else {}
    brush = alt.selection_interval(name=BRUSH, encodings=["x"], **initial)
    hover = alt.selection_point(
        name="hover", nearest=True, on="pointermove", clear="pointerout", fields=["step"], empty=False
    )
    picked = alt.selection_point(name="picked", fields=["lane"], empty=False)
    rows = [overview(brush)]
    if options.lanes:
        rows.append(lane_strip(options.lanes, picked))
    shade = picked if options.lanes else None
    panels = (
        (SMOOTHED if options.smoothed else LOSS, options.log_loss),
        (NORMS, True),
        (RATES, options.log_rates),
    )
    rows += [draw_panel(panel, log, brush, hover, shade) for panel, log in panels]
    chart = alt.vconcat(*rows, spacing=16, padding={"left": 0, "right": 0, "top": 4, "bottom": 4})
    return chart.resolve_scale(color="independent", strokeDash="independent").configure_view(strokeWidth=0)


def heading(text: str) -> alt.TitleParams:
    return alt.TitleParams(text, anchor="start", fontSize=13, fontWeight="bold", offset=6)


def step_axis(domain: Any = None) -> alt.X:
    axis = alt.Axis(labelExpr=STEP_LABEL, grid=False, title=None, labelFlush=True, tickCount=8, tickMinStep=1)
    scale: Any = {"nice": False, "zero": False} | ({} if domain is None else {"domain": domain})
    return alt.X("step:Q", scale=alt.Scale(**scale), axis=axis)


def value_axis(log: bool) -> alt.Y:
    """Labels stand inside the plot: a concatenated chart is as wide as its plots, and axes would hang outside."""
    inside: Any = {
        "labelAlign": "left",
        "labelBaseline": "bottom",
        "labelPadding": -4,
        "ticks": False,
        "domain": False,
        "minExtent": 0,
        "maxExtent": 0,
        "title": None,
        "zindex": 1,
    }
    if not log:
        return alt.Y(
            "value:Q",
            scale=alt.Scale(zero=False, padding=6),
            axis=alt.Axis(labelExpr=NUMBER_LABEL, tickCount=4, **inside),
        )
    some: Any = alt.condition(ROUND, alt.value(1), alt.value(0))
    axis = alt.Axis(labelExpr=LOG_LABEL, labelOverlap=True, gridOpacity=some, tickCount=6, **inside)
    return alt.Y("value:Q", scale=alt.Scale(type="log", nice=False), axis=axis)


def overview(brush: alt.Parameter) -> Drawn:
    """The whole run, small: what the brush moves over."""
    y = alt.Y("value:Q", axis=None, scale=alt.Scale(type="symlog", constant=0.01, zero=False))
    line = alt.Chart(alt.NamedData("overview")).mark_line(color=GREY, strokeWidth=1.2).encode(x=step_axis(), y=y)
    title = heading("Whole run · drag to zoom, double-click to see all")
    return alt.layer(whole_run(step_axis()), line.add_params(brush)).properties(height=44, title=title)


def whole_run(x: alt.X) -> Drawn:
    """Invisible ends: a loss that is NaN from some update on must not end the axis there."""
    return alt.Chart(alt.NamedData("whole")).mark_point(opacity=0, tooltip=None).encode(x=x)


def lane_strip(count: int, picked: alt.Parameter) -> Drawn:
    """One lane a finding, named: full shading of all of them would mix into mud."""
    x = alt.X("step:Q", scale=alt.Scale(nice=False, zero=False), axis=None)
    colour = alt.Color("colour:N", scale=None)
    base = alt.Chart(alt.NamedData("lanes")).encode(
        x=x, y=alt.Y("lane:O", axis=None), tooltip=alt.Tooltip("summary:N", title=" ")
    )
    strength: Any = alt.condition(picked, alt.value(1), alt.value(0.7))
    bars = base.mark_bar(height=5, yOffset=7, cursor="pointer").encode(x2="until:Q", color=colour, opacity=strength)
    words = base.mark_text(align="left", baseline="middle", fontSize=12, fontWeight="bold", dy=-3, cursor="pointer")
    drawn = alt.layer(whole_run(x), bars.add_params(picked), words.encode(x=alt.value(2), text="label:N", color=colour))
    return drawn.properties(height=count * LANE, title=heading("Findings · click one to shade it below"))


def draw_panel(
    panel: Panel, log: bool, brush: alt.Parameter, hover: alt.Parameter, picked: alt.Parameter | None
) -> Drawn:
    x = step_axis(brush)
    layers = [
        alt.Chart(alt.NamedData("ends")).mark_point(opacity=0, tooltip=None).encode(x=x),  # keeps the axis whole
        *([shading(x, picked)] if picked else []),
        *lines(panel, log, x),
        *bad_marks(panel, x),
        cross_hair(x, hover),
    ]
    drawn = alt.layer(*layers).properties(height=170, title=heading(panel.title))
    return drawn.resolve_scale(color="independent", strokeDash="independent")  # else two legends


def shading(x: alt.X, picked: alt.Parameter) -> Drawn:
    strength: Any = alt.condition(picked, alt.value(0.22), alt.Opacity("shade:Q", scale=None))
    rects = alt.Chart(alt.NamedData("lanes")).mark_rect(clip=True, tooltip=None)
    return rects.encode(x=x, x2="until:Q", color=alt.Color("colour:N", scale=None), opacity=strength)


def lines(panel: Panel, log: bool, x: alt.X) -> parts.Layers:
    """The panel's lines; on a log axis without their zeros, which are marked on its lower edge."""
    data = alt.Chart(alt.NamedData(panel.data))
    names, colours, dashes = list(panel.lines), *zip(*panel.lines.values(), strict=True)
    legend = alt.Legend(orient="top", title=None, offset=2, symbolType="stroke") if len(names) > 1 else None
    scale = alt.Scale(domain=names, range=list(colours))
    shown = data.transform_filter("datum.value > 0") if log else data
    mark = shown.mark_line(strokeWidth=1.8, clip=True, interpolate="step-after" if panel is RATES else "linear")
    faint: Any = alt.condition("datum.name == 'loss'", alt.value(0.5 if panel is SMOOTHED else 1), alt.value(1))
    drawn = mark.encode(
        x=x,
        y=value_axis(log),
        opacity=faint,
        color=alt.Color("name:N", scale=scale, legend=legend),
        strokeDash=alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=list(dashes)), legend=legend),
    )
    zeros = data.transform_filter("datum.value == 0").transform_calculate(note="datum.name + ' is exactly 0'")
    colour = alt.Color("name:N", scale=scale, legend=None)
    return [drawn, *([parts.zero_marks(zeros, x, color=colour)] if log else [])]


def bad_marks(panel: Panel, x: alt.X) -> parts.Layers:
    """Red where values are NaN or infinite, and a word for it beside the panel's title: grid lines would cross it."""
    data = alt.Chart(alt.NamedData("bad")).transform_filter(f"datum.panel == '{panel.data}'")
    marks = data.mark_rect(color=VERMILION, opacity=0.3, clip=True, stroke=VERMILION)
    word = data.transform_aggregate(stretches="count()", groupby=["panel"]).mark_text(
        text="■ not finite", color=VERMILION, fontSize=12, align="right", baseline="bottom", clip=False, tooltip=None
    )
    return [
        marks.encode(x=x, x2="until:Q", tooltip=alt.Tooltip("note:N", title=" ")),
        word.encode(x=alt.value("width"), y=alt.value(-5)),
    ]


def cross_hair(x: alt.X, hover: alt.Parameter) -> Drawn:
    tips = [
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("loss:N"),
        alt.Tooltip("grad_norm:N", title="gradient norm"),
        alt.Tooltip("lr:N", title="learning rate"),
    ]
    strength: Any = alt.condition(hover, alt.value(0.8), alt.value(0))
    rule = alt.Chart(alt.NamedData("hair")).mark_rule(color=PINK, strokeWidth=1.5, clip=True)
    return rule.encode(x=x, opacity=strength, tooltip=tips).add_params(hover)
