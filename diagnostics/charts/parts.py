"""What the charts share: the step axis, the shaded span of a finding, marks for values that are not finite."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts.not_finite import marks
from diagnostics.charts.reduce import BUCKETS
from diagnostics.charts.theme import GREY, SIGNS, VERMILION
from diagnostics.rules import Finding

HEIGHT = 250  # in all: Streamlit fits plot, axes and title into it
LABELLED = 0.2  # of a chart's width: what two words take in a narrow one
# The annotations of altair and pandas are unions that hardly any use survives; these names say what is meant.
Drawn = Any  # an alt.LayerChart or alt.VConcatChart
Layers = list[Any]  # of alt.Chart
Frame = Any  # a pandas.DataFrame

# Of the ticks of a log axis 1, 2 and 5 times a power of ten get a grid line and a label; so do the fractions that Vega
# falls back to where an axis covers less than a factor of three.
_MANTISSA = "(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
ROUND = f"(abs({_MANTISSA} - round({_MANTISSA})) > 1e-6 || indexof([1, 2, 5], round({_MANTISSA})) >= 0)"
_SHORT = "(datum.value >= 1e5 || datum.value < 1e-3 ? format(datum.value, '.1~e') : format(datum.value, '.6~r'))"
STEP_LABEL = "datum.value >= 1e5 ? format(datum.value, '~s') : format(datum.value, ',')"
NUMBER_LABEL = (  # not an axis format: Vega would round it to the spacing of the ticks
    "datum.value != 0 && (abs(datum.value) >= 1e5 || abs(datum.value) < 1e-3)"
    " ? format(datum.value, '.1~e') : format(datum.value, '.6~r')"
)
LOG_LABEL = f"{ROUND} ? {_SHORT} : ''"


def step_axis(*, title: str | None = "update") -> alt.X:
    """The step axis, the same in every layer so that they share it. Its ends come from `whole_run`, as data: a domain
    in the specification would change with every update of a live run, and the browser would draw the chart anew."""
    axis = alt.Axis(
        labelExpr=STEP_LABEL,
        tickMinStep=1,
        grid=False,
        title=title,
        titlePadding=2,
        labelPadding=4,
    )
    return alt.X("step:Q", scale=alt.Scale(nice=False, zero=False), axis=axis)


def whole_run(x: alt.X, first: float, last: float) -> Drawn:
    """Two invisible points that stretch the step axis over the run."""
    ends = pd.DataFrame({"step": [first, max(last, first + 1)]})
    return alt.Chart(ends).mark_point(opacity=0, tooltip=None).encode(x=x)


def value_axis(field: str, title: str | None, *, log: bool = False, domain: Sequence[float] | None = None) -> alt.Y:
    """A value axis; on a log scale round numbers only."""
    if not log:
        scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain), zero=False)
        return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(labelExpr=NUMBER_LABEL, tickCount=5))
    scale = alt.Scale(type="log") if domain is None else alt.Scale(type="log", domain=list(domain), nice=False)
    some: Any = alt.condition(ROUND, alt.value(1), alt.value(0))
    axis = alt.Axis(labelExpr=LOG_LABEL, labelOverlap=True, gridOpacity=some, tickOpacity=some)
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=axis)


def wide(values: Frame | NDArray, factor: float = 10.0) -> bool:
    """Whether a log axis shows more: the positive values differ by more than a factor, and none is negative."""
    values = np.asarray(values, float)
    positive = values[np.isfinite(values) & (values > 0)]
    return bool(len(positive)) and bool(positive.max() > factor * positive.min()) and not below_zero(values)


def below_zero(values: Frame | NDArray) -> bool:
    """Whether there are values that a log axis would leave out."""
    values = np.asarray(values, float)
    return bool((values[np.isfinite(values)] < 0).any())


def zero_marks(data: Any, x: alt.X, **colour: Any) -> Drawn:
    """The points of the chart `data`, each with a `note`, on the lower edge of a log axis, which has no place for 0."""
    mark = data.mark_point(shape="triangle-down", filled=True, size=45, opacity=0.9, yOffset=-5, clip=True)
    tooltip = [alt.Tooltip("note:N", title=" "), alt.Tooltip("step:Q", format=",")]
    return mark.encode(x=x, y=alt.value("height"), tooltip=tooltip, **colour)


def around_level(values: NDArray, *, digits: int = 5) -> tuple[float, float] | None:
    """A tenth on either side of values that hardly differ: their ticks, of six digits, would all read alike."""
    finite = values[np.isfinite(values)]
    if not len(finite) or not np.ptp(finite) <= 10.0**-digits * np.abs(finite).max() > 0:
        return None
    level = float(f"{np.median(finite):.3g}")  # the same while a run is live, or the chart would be drawn anew
    return level - abs(level) / 10, level + abs(level) / 10


def thinned(estimates: Frame) -> str:
    """What the title of a chart of curvature adds where not every estimate is shown; no number, as it would grow."""
    return " (of neighbouring estimates the worst)" if len(estimates) > BUCKETS else ""


def span_layers(finding: Finding | None, x: alt.X, first: float, last: float) -> Layers:
    """The stretch a finding covers: light shading, a dashed line and the words "since step N" where it begins."""
    if finding is None:
        return []
    sign = SIGNS[finding.severity]
    begin = min(max(finding.first_step, first), last)
    until = last if finding.last_step is None else min(finding.last_step, last)
    ends = "" if finding.last_step is None else f" to {finding.last_step:,}"
    label = (
        f"{sign.glyph} step {finding.first_step:,}{ends}" if ends else f"{sign.glyph} since step {finding.first_step:,}"
    )
    data = pd.DataFrame({"step": [begin], "until": [until], "label": [label]})
    right = begin < first + 0.65 * (last - first)
    base = alt.Chart(data).encode(x=x)
    return [
        base.mark_rect(color=sign.colour, opacity=0.1, tooltip=None).encode(x2="until:Q"),
        base.mark_rule(color=sign.colour, strokeDash=[5, 3], strokeWidth=1.5, tooltip=None),
        base.mark_text(
            color=sign.colour, align="left" if right else "right", baseline="top", dx=5 if right else -5,
            fontWeight="bold", fontSize=12, tooltip=None,
        ).encode(text="label:N", y=alt.value(4)),
    ]  # fmt: skip


def non_finite_layers(steps: NDArray, values: NDArray, x: alt.X, what: str) -> Layers:
    """Red marks at the top of the panel where values (T,) are NaN or infinite."""
    rows = marks(steps, values, what)
    if rows.empty:
        return []
    room = LABELLED * (steps[-1] - steps[0])
    rows["sign"] = np.where(rows["until"] - rows["step"] > room, "✕ not finite", "✕")
    base = alt.Chart(rows).encode(x=x, tooltip=alt.Tooltip("note:N", title=" "))
    return [
        base.mark_rect(color=VERMILION, opacity=0.3, clip=True).encode(x2="until:Q"),
        base.mark_text(color=VERMILION, fontSize=13, fontWeight="bold", align="left", baseline="top").encode(
            y=alt.value(20), text="sign:N"
        ),
    ]


def empty(message: str) -> Drawn:
    """A chart that only says why there is nothing to draw."""
    text = alt.Chart(pd.DataFrame({"note": [message]})).mark_text(color=GREY, fontSize=13).encode(text="note:N")
    return alt.layer(text).properties(height=80)


def layer(layers: Sequence[Any], title: str, height: int = HEIGHT) -> Drawn:
    header = alt.TitleParams(title, anchor="start", fontSize=14, fontWeight="bold", offset=8)
    return alt.layer(*layers).properties(height=height, title=header, padding=0)


def detached(chart: Drawn) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The specification without data, and the data by name: what stays the same from one refresh to the next."""
    frames: dict[str, pd.DataFrame] = {}

    def take(node: Drawn) -> Drawn:
        node = node.copy(deep=False)
        if isinstance(node.data, pd.DataFrame):
            name = f"data{len(frames)}"
            frames[name], node.data = node.data, alt.NamedData(name)
        if isinstance(node, alt.LayerChart):
            node.layer = [take(child) for child in node.layer]
        return node

    spec = take(chart).to_dict()
    spec["config"] = spec.get("config", {}) | {"aria": False}
    return spec, frames
