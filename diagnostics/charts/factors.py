"""The factor by which an optimizer multiplies each direction a step, over curvature: the lecture's three cases."""

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts import dynamics, parts
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.charts.theme import BLUE, GREEN, GREY, PINK, VERMILION

HIGHEST = 2.0  # of the factor axis
ROUNDING = 1e-12  # of a factor: that of a curvature too small to count in 1 - eta lambda is exactly 1
FATES = {
    "decays": (GREEN, "circle"),
    "oscillates": (BLUE, "square"),
    "diverges": (VERMILION, "triangle-up"),
    "escapes": (PINK, "diamond"),
}


def fates(optimizer: dynamics.Optimizer, curvature: NDArray) -> Frame:
    """One row a direction: curvature, rate x curvature, factor, steps to change tenfold, and what becomes of it.

    A direction of negative curvature is left, not approached: its steps are those of growing tenfold.
    """
    curvature = np.asarray(curvature, float)
    factor = dynamics.factor(optimizer, curvature)
    swings = dynamics.oscillates(optimizer, curvature)
    fate = np.where(factor > 1 + ROUNDING, "diverges", np.where(swings, "oscillates", "decays"))
    fate = np.where(curvature <= 0, "escapes", fate)
    steps = np.where(factor < 1, dynamics.steps_to(0.1, factor), dynamics.steps_to(10, factor))
    return pd.DataFrame(
        {"curvature": curvature, "product": optimizer.lr * curvature, "factor": factor, "steps": steps, "fate": fate}
    )


def factors(optimizer: dynamics.Optimizer, curvature: NDArray, title: str) -> Drawn:
    """The curve of the factor over all curvatures in range, the measured directions on it."""
    axis = alt.Axis(labelExpr=parts.NUMBER_LABEL, grid=False, titlePadding=2)
    x = alt.X("curvature:Q", title="curvature λ of the direction", scale=alt.Scale(nice=False), axis=axis)
    clamped = alt.Scale(domain=[0, HIGHEST], clamp=True)
    y = alt.Y("factor:Q", title="factor per step", scale=clamped, axis=alt.Axis(values=[0, 0.5, 1, 1.5, 2]))
    edge = alt.Chart(pd.DataFrame({"low": [1.0], "high": [HIGHEST]})).encode(y="low:Q")
    curve = alt.Chart(whole_curve(optimizer, curvature)).mark_line(color=GREY, strokeWidth=2, clip=True, tooltip=None)
    layers = [
        edge.mark_rect(color=VERMILION, opacity=0.12, tooltip=None).encode(y2="high:Q"),
        edge.mark_rule(color=VERMILION, strokeDash=[8, 4], strokeWidth=1.5, tooltip=None),
        curve.encode(x=x, y=y),
        points(fates(optimizer, curvature), x, y),
    ]
    return parts.layer(layers, title, 300)


def whole_curve(optimizer: dynamics.Optimizer, curvature: NDArray) -> Frame:
    """The factor from the smallest measured curvature past the largest, and past the limit where that is near."""
    largest = float(np.max(np.abs(curvature)))
    limit = dynamics.largest_rate(optimizer, 1.0) / optimizer.lr  # the curvature at which this rate diverges
    lambdas = np.linspace(
        min(1.3 * float(np.min(curvature)), 0.0), np.clip(1.2 * limit, 1.15 * largest, 6 * largest), 400
    )
    return pd.DataFrame({"curvature": lambdas, "factor": dynamics.factor(optimizer, lambdas)})


def points(found: Frame, x: alt.X, y: alt.Y) -> Drawn:
    names, legend = list(FATES), alt.Legend(orient="bottom", title=None)
    tooltip = [
        alt.Tooltip("curvature:Q", format=".4g", title="λ"),
        alt.Tooltip("factor:Q", format=".4g"),
        alt.Tooltip("fate:N", title=" "),
        alt.Tooltip("steps:Q", format=",.0f", title="steps for tenfold"),
    ]
    colours, shapes = zip(*FATES.values(), strict=True)
    return (
        alt.Chart(found)
        .mark_point(filled=True, size=110, opacity=0.95)
        .encode(
            x=x,
            y=y,
            color=alt.Color("fate:N", scale=alt.Scale(domain=names, range=list(colours)), legend=legend),
            shape=alt.Shape("fate:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=legend),
            tooltip=tooltip,
        )
    )
