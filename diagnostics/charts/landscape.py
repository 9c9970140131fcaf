"""A two-dimensional loss surface as shaded bands of equal height, with the paths of optimizers on it."""

import base64
import io
from collections.abc import Callable

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from diagnostics.charts import parts
from diagnostics.charts.parts import Drawn
from diagnostics.charts.theme import CATEGORIES, DASHES, GREY

PIXELS = 180
BANDS = 14
Extent = tuple[float, float, float, float]  # left, right, bottom, top
Surface = Callable[[NDArray, NDArray], NDArray]


def quadratic(hessian: NDArray) -> Surface:
    """J(x, y) = (x, y) H (x, y)' / 2."""
    return lambda x, y: (hessian[0, 0] * x**2 + 2 * hessian[0, 1] * x * y + hessian[1, 1] * y**2) / 2


def landscape(
    surface: Surface,
    extent: Extent,
    paths: dict[str, NDArray],
    title: str,
    *,
    axes: tuple[str, str] = ("", ""),
    height: int = 380,
) -> Drawn:
    """`paths`: name -> visited points (T, 2)."""
    left, right, bottom, top = extent
    x = alt.X("x:Q", title=axes[0] or None, scale=alt.Scale(domain=[left, right], nice=False), axis=_axis())
    y = alt.Y("y:Q", title=axes[1] or None, scale=alt.Scale(domain=[bottom, top], nice=False), axis=_axis())
    return parts.layer([shading(surface, extent, x, y), *tracks(paths, x, y)], title, height)


def _axis() -> alt.Axis:
    return alt.Axis(grid=False, labelExpr=parts.NUMBER_LABEL, tickCount=5, titlePadding=2)


def shading(surface: Surface, extent: Extent, x: alt.X, y: alt.Y) -> Drawn:
    left, right, bottom, top = extent
    columns, rows = np.meshgrid(np.linspace(left, right, PIXELS), np.linspace(top, bottom, PIXELS))
    row = {"x": left, "right": right, "y": bottom, "top": top, "url": banded(surface(columns, rows))}
    mark = alt.Chart(pd.DataFrame([row])).mark_image(aspect=False, tooltip=None, clip=True)
    return mark.encode(x=x, x2="right:Q", y=y, y2="top:Q", url="url:N")


def banded(values: NDArray) -> str:
    """(rows, columns) -> data URL: bands of equal area, grey and half transparent, so that they suit any page."""
    edges = np.quantile(values, np.linspace(0, 1, BANDS + 1)[1:-1])
    band = np.searchsorted(edges, values)
    pixels = np.full((*values.shape, 4), 118, np.uint8)
    pixels[..., 3] = (band * (150 / BANDS)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def tracks(paths: dict[str, NDArray], x: alt.X, y: alt.Y) -> parts.Layers:
    names = list(paths)
    if not names:
        return []
    rows = [
        {"x": point[0], "y": point[1], "step": step, "path": name}
        for name, points in paths.items()
        for step, point in enumerate(points)
        if np.abs(point).max() < 1e6
    ]
    legend = alt.Legend(orient="bottom", title=None, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("path:N", scale=alt.Scale(domain=names, range=list(CATEGORIES[: len(names)])), legend=legend)
    dashes = alt.Scale(domain=names, range=[list(dash) for dash in DASHES[: len(names)]])
    tips = [alt.Tooltip("path:N", title=" "), alt.Tooltip("step:Q")]
    tips += [alt.Tooltip(f"{field}:Q", format=".3g") for field in "xy"]
    base = alt.Chart(pd.DataFrame(rows)).encode(x=x, y=y, color=colour, order="step:Q", tooltip=tips)
    start = alt.Chart(pd.DataFrame(rows[:1])).encode(x=x, y=y)
    return [
        base.mark_line(strokeWidth=2, clip=True).encode(
            strokeDash=alt.StrokeDash("path:N", scale=dashes, legend=legend)
        ),
        base.mark_circle(size=26, opacity=0.9, clip=True),
        start.mark_point(shape="cross", size=120, color=GREY, strokeWidth=2, filled=True, tooltip=None),
    ]
