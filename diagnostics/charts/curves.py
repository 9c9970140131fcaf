"""Functions of one variable as lines, with points on them: the lecture's one-dimensional pictures."""

from collections.abc import Sequence

import altair as alt
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts import parts
from diagnostics.charts.lines import LEGEND_ROW
from diagnostics.charts.parts import Drawn
from diagnostics.charts.theme import CATEGORIES, DASHES, GREY, VERMILION

MOST_LETTERS = 12  # of names in a row: three of them fit on a telephone

Points = tuple[NDArray, NDArray]  # x (N,), y (N,)


def curves(
    lines: dict[str, Points],
    title: str,
    axes: tuple[str, str],
    *,
    visited: Points | None = None,
    y_domain: tuple[float, float] | None = None,
    log: bool = False,
    height: int = 320,
    colours: Sequence[str] = CATEGORIES,
) -> Drawn:
    """`lines`: name -> points; `visited`: steps of an optimizer, numbered and joined; `colours`: of the lines."""
    frames = [pd.DataFrame({"x": x, "y": y, "line": name}) for name, (x, y) in lines.items()]
    data = pd.concat(frames, ignore_index=True)
    x = alt.X(
        "x:Q",
        title=axes[0],
        scale=alt.Scale(nice=False),
        axis=alt.Axis(grid=False, labelExpr=parts.NUMBER_LABEL, titlePadding=2),
    )
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    if y_domain:
        scale = alt.Scale(domain=list(y_domain), nice=False)
    y = alt.Y("y:Q", title=axes[1], scale=scale, axis=alt.Axis(labelExpr=parts.NUMBER_LABEL, tickCount=5))
    names = list(lines)
    below = max(map(len, names)) > MOST_LETTERS
    legend = alt.Legend(orient="bottom", title=None, labelLimit=400, columns=1 if below else 0)
    legend, height = (legend, height + LEGEND_ROW * (len(names) - 1) * below) if len(names) > 1 else (None, height)
    colour = alt.Scale(domain=names, range=list(colours[: len(names)]))
    dashes = alt.Scale(domain=names, range=[list(dash) for dash in DASHES[: len(names)]])
    line = alt.Chart(data).mark_line(strokeWidth=2.5, clip=True).encode(
        x=x,
        y=y,
        color=alt.Color("line:N", scale=colour, legend=legend),
        strokeDash=alt.StrokeDash("line:N", scale=dashes, legend=legend),
        tooltip=[alt.Tooltip("line:N", title=" "), alt.Tooltip("x:Q", format=".3g"), alt.Tooltip("y:Q", format=".3g")],
    )  # fmt: skip
    return parts.layer([line, *(steps(visited, x, y) if visited else [])], title, height)


def steps(visited: Points, x: alt.X, y: alt.Y) -> parts.Layers:
    data = pd.DataFrame({"x": visited[0], "y": visited[1], "step": range(len(visited[0]))})
    base = alt.Chart(data).encode(x=x, y=y, order="step:Q")
    tips = [alt.Tooltip("step:Q"), alt.Tooltip("x:Q", format=".3g"), alt.Tooltip("y:Q", format=".3g")]
    return [
        base.mark_line(color=GREY, strokeWidth=1.2, strokeDash=[4, 3], clip=True, tooltip=None),
        base.mark_circle(color=VERMILION, size=60, opacity=0.9, clip=True).encode(tooltip=tips),
    ]
