"""Mean and deviation of every input feature on one log axis: features of different scale or off centre stand out."""

import altair as alt
import numpy as np

from diagnostics.charts import parts
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.charts.theme import BLUE, VERMILION
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

MOST_NAMED = 20
NAMES = {"std": "standard deviation", "mean": "size of the mean"}


def inputs(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    data = last_statistics(run)
    if data.empty:
        return parts.empty("Input features were not recorded in this run")
    x = alt.X(
        "value:Q",
        title="value (log scale); standardized features lie at a deviation of 1 and a mean near 0",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(labelExpr=parts.NUMBER_LABEL, tickCount=6),
    )
    features = list(dict.fromkeys(data["feature"]))
    named = len(features) <= MOST_NAMED
    y = alt.Y(
        "feature:N",
        sort=features,
        title="input feature",
        axis=alt.Axis(labels=named, ticks=named, domain=False, grid=named),
    )
    names, legend = list(NAMES.values()), alt.Legend(orient="bottom", title=None)
    points = (
        alt.Chart(data)
        .mark_point(filled=True, size=70 if named else 20, opacity=0.9)
        .encode(
            x=x,
            y=y,
            color=alt.Color("name:N", scale=alt.Scale(domain=names, range=[BLUE, VERMILION]), legend=legend),
            shape=alt.Shape("name:N", scale=alt.Scale(domain=names, range=["circle", "diamond"]), legend=legend),
            tooltip=["feature:N", alt.Tooltip("name:N", title=" "), alt.Tooltip("value:Q", format=".4g")],
        )
    )
    around = 180  # pixels of title, axis and legend, which the height includes
    return parts.layer([points], chart.title, min(len(features) * 24 + around, 460))


def last_statistics(run: Run) -> Frame:
    """Long form of the last recorded update: feature, name, value > 0 (a log axis shows no zero)."""
    table: Frame = run.table("inputs", ["step", "feature", "mean", "std"])
    table = table[table["step"] == table["step"].max()]
    long = table.assign(mean=table["mean"].abs()).melt("feature", ["std", "mean"], "name", "value")
    long["name"] = long["name"].map(NAMES)
    return long[np.isfinite(long["value"]) & (long["value"] > 0)]
