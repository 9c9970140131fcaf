"""The loss along a line through the weights after an update, beside its second-order Taylor approximation."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts import parts
from diagnostics.charts.parts import Drawn
from diagnostics.charts.theme import BLUE, GREY, VERMILION

STYLES = {  # name -> colour, dash, width: the approximation shows below the loss where they agree
    "measured": (BLUE, [1, 0], 2.0),
    "second-order Taylor": (GREY, [8, 4], 4.5),
}
SMOOTH = 80  # points of the parabola
TALLEST = 3.0  # times what lies between the lowest loss and the top of the parabola and the update: more is cut off


def along(row: dict[str, Any], title: str) -> Drawn:
    """`row`: one row of the table `slices`. Where the update began is a ring, where it landed a disc."""
    measured = pd.DataFrame({"t": row["offsets"], "loss": row["losses"]})
    measured = measured[np.isfinite(measured["loss"])].assign(line="measured")
    t = np.linspace(row["offsets"][0], row["offsets"][-1], SMOOTH)
    parabola = pd.DataFrame({"t": t, "loss": taylor(row, t), "line": "second-order Taylor"})
    x = alt.X(
        "t:Q",
        title="distance along it from the weights after the update",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(grid=False, labelExpr=parts.NUMBER_LABEL, titlePadding=2, tickCount=5),
    )
    floor, top = heights(row, parabola["loss"].to_numpy(), measured["loss"].to_numpy())
    y = alt.Y(
        "loss:Q",
        title="loss of the batch",
        scale=alt.Scale(domain=[floor, top], nice=False, zero=False),
        axis=alt.Axis(labelExpr=parts.NUMBER_LABEL, tickCount=5),
    )
    names, legend = list(STYLES), alt.Legend(orient="bottom", title=None, columns=2)
    colours, dashes, widths = (alt.Scale(domain=names, range=list(each)) for each in zip(*STYLES.values(), strict=True))
    lines = alt.Chart(pd.concat([parabola, measured])).mark_line(clip=True, interpolate="monotone", opacity=1)
    lines = lines.encode(
        x=x,
        y=y,
        color=alt.Color("line:N", scale=colours, legend=legend),
        strokeDash=alt.StrokeDash("line:N", scale=dashes, legend=legend),
        strokeWidth=alt.StrokeWidth("line:N", scale=widths, legend=legend),
    )
    tips = [alt.Tooltip("t:Q", format=".3g", title="distance"), alt.Tooltip("loss:Q", format=".4g")]
    points = alt.Chart(measured).mark_circle(color=BLUE, size=30, opacity=1, clip=True).encode(x=x, y=y, tooltip=tips)
    return parts.layer([lines, points, *update_marks(row, x, y)], title, 330)


def taylor(row: dict[str, Any], t: NDArray) -> NDArray:
    """J(t) = J(0) + slope t + curvature t^2 / 2."""
    return here(row) + row["slope"] * t + row["curvature"] * t**2 / 2


def here(row: dict[str, Any]) -> float:
    """The loss at the weights themselves."""
    return float(row["losses"][list(row["offsets"]).index(0.0)])


def began(row: dict[str, Any]) -> float | None:
    """The loss where the update began on this line; `None` where that is not known."""
    offsets = list(row["offsets"])
    return float(row["losses"][offsets.index(-row["moved"])]) if -row["moved"] in offsets else None


def heights(row: dict[str, Any], parabola: NDArray, measured: NDArray) -> tuple[float, float]:
    """The loss axis: everything, unless the measured loss shoots up so far that the valley would be a line."""
    seen = np.concatenate([parabola, [here(row)], [value for value in [began(row)] if value is not None]])
    seen = seen[np.isfinite(seen)]
    low = min(seen.min(), measured.min(initial=np.inf))
    high = max(seen.max(), measured.max(initial=-np.inf))
    high = min(high, low + TALLEST * (seen.max() - low))
    room = 0.12 * (high - low) or 1.0
    return float(low - room), float(high + room)


def update_marks(row: dict[str, Any], x: alt.X, y: alt.Y) -> parts.Layers:
    """Where the update began and where it landed, joined by a line, named."""
    start = began(row)
    ends = [(0.0, here(row), "landed")]
    if start is not None and np.isfinite(start):
        ends.insert(0, (-row["moved"], start, "the update began"))
    data = pd.DataFrame(ends, columns=["t", "loss", "end"])
    leftmost, rightmost = row["offsets"][0], row["offsets"][-1]
    data["side"] = np.where(data["t"] < (leftmost + rightmost) / 2, "left", "right")
    base = alt.Chart(data).encode(x=x, y=y)
    filled: Any = alt.condition("datum.t == 0", alt.value(VERMILION), alt.value("transparent"))
    tips = [alt.Tooltip("end:N", title=" "), alt.Tooltip("t:Q", format=".3g"), alt.Tooltip("loss:Q", format=".4g")]
    words = []
    for side, inward, outward in (("left", "left", "right"), ("right", "right", "left")):
        near = base.transform_filter(f"datum.side == '{side}'").encode(text="end:N")
        # Inside the valley above the one mark, outside and below the other: there the curve is not.
        for which, place in (("!=", {"align": inward, "dy": -17}), ("==", {"align": outward, "dy": 17})):
            style: dict[str, Any] = {"color": VERMILION, "fontWeight": "bold", "fontSize": 12, "tooltip": None, **place}
            words.append(near.transform_filter(f"datum.t {which} 0").mark_text(**style))
    return [
        base.mark_line(color=VERMILION, strokeWidth=1.2, strokeDash=[2, 3], clip=True, tooltip=None),
        base.mark_point(shape="circle", stroke=VERMILION, strokeWidth=2.5, size=110, opacity=1, clip=True).encode(
            fill=filled, tooltip=tips
        ),
        *words,
    ]
