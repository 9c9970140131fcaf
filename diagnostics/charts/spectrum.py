"""Eigenvalues of the Hessian: over steps with error bars and the optimizer's limits, and at one step."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from diagnostics.charts import own, parts
from diagnostics.charts.lines import whole
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.charts.reduce import largest_of
from diagnostics.charts.stability import no_curvature
from diagnostics.charts.theme import BLUE, GREEN, GREY, PINK, VERMILION
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

STYLES = {  # name -> colour, dash: told apart without colour
    "λ₁": (BLUE, [1, 0]),
    "λ₂, λ₃, …": (GREY, [3, 3]),
    "smallest": (PINK, [6, 2]),
    "stability limit": (VERMILION, [10, 4]),
    "oscillation starts": (GREEN, [2, 2]),
}
COLUMNS = ["step", "eigenvalues", "residuals", "smallest", "smallest_residual"]
COLUMNS += ["preconditioned", "limit", "oscillation_limit"]
LEGEND = alt.Legend(orient="bottom", title=None, columns=3, symbolType="stroke", symbolStrokeWidth=2, symbolSize=300)


def spectrum(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    table = run.table("curvature", COLUMNS)
    shown = extremes(table)
    data = eigenvalues(shown)
    if data.empty:
        return parts.empty(no_curvature(run))
    first, last = whole(run)
    x = parts.step_axis()
    bounds = limits_over(run, shown, last)
    names = pd.concat([data["name"], bounds["name"]])
    return parts.layer(
        [
            parts.whole_run(x, first, last),
            *parts.span_layers(finding, x, first, last),
            *with_errors(data, x, names),
            *limit_lines(bounds, x, names),
        ],
        chart.title + parts.thinned(table),
        300,
    )


def extremes(table: Frame) -> Frame:
    """Of many estimates those with the largest and those with the smallest eigenvalue of their bucket."""
    tops = [values[0] if len(values) else np.nan for values in table["eigenvalues"]]
    ends = np.array(tops, float), -table["smallest"].to_numpy(float)
    return table.iloc[largest_of(table["step"].to_numpy(), *ends)]


def eigenvalues(table: Frame) -> Frame:
    """Long form: step, rank (1 is the largest, 0 the smallest), value, below, above, name."""
    rows = []
    for row in table.itertuples():
        for rank, (value, error) in enumerate(zip(row.eigenvalues, row.residuals, strict=True), start=1):
            rows.append((row.step, rank, value, error, "λ₁" if rank == 1 else "λ₂, λ₃, …"))
        rows.append((row.step, 0, row.smallest, row.smallest_residual, "smallest"))
    data = pd.DataFrame(rows, columns=["step", "rank", "value", "residual", "name"])
    data = data.astype({"value": float, "residual": float})
    data = data[np.isfinite(data["value"])]
    return data.assign(below=data["value"] - data["residual"], above=data["value"] + data["residual"])


def value_axis(values: np.ndarray, **options: Any) -> dict[str, Any]:
    """Scale and axis, linear up to the typical size and logarithmic beyond: eigenvalues have both signs, those of one
    size are told apart on a linear scale only, those of a ravine on a logarithmic one. Less than a millionth of the
    largest is rounding."""
    sizes = np.abs(values) if len(values) else np.ones(1)
    largest = max(float(sizes.max()), 1e-12)
    typical = max(float(np.median(sizes)), largest / 1e6, 1e-12)
    if largest > 30 * typical:  # Vega's own ticks are evenly spaced, which leaves the decades without any
        decades = 10.0 ** np.arange(np.ceil(np.log10(typical)), np.floor(np.log10(largest)) + 1)
        options["values"] = [*-decades[::-1], 0.0, *decades]
    scale = alt.Scale(type="symlog", constant=typical, nice=False, padding=8)
    return {"scale": scale, "axis": alt.Axis(labelExpr=parts.NUMBER_LABEL, **options)}


def with_errors(data: Frame, x: alt.X, names: Frame) -> parts.Layers:
    y = alt.Y("value:Q", title="eigenvalue", **value_axis(data["value"].to_numpy()))
    base = alt.Chart(data).encode(
        x=x,
        y=y,
        color=colour(names),
        detail="rank:N",
        tooltip=[
            alt.Tooltip("step:Q", format=","),
            alt.Tooltip("name:N", title=" "),
            alt.Tooltip("value:Q", format=".4g"),
            alt.Tooltip("residual:Q", format=".2g", title="± residual"),
        ],
    )
    return [
        base.mark_line(strokeWidth=1.8).encode(strokeDash=dash(names)),
        base.mark_rule(opacity=0.7).encode(y=alt.Y("below:Q"), y2="above:Q"),
        base.mark_circle(size=22, opacity=0.9),
    ]


def limits_over(run: Run, table: Frame, last: float) -> Frame:
    """The stability and the oscillation limit as eigenvalues: step, value, name. None where an adaptive optimizer's
    limit holds for the preconditioned Hessian instead: the stability ratio tells."""
    if not comparable(table):
        return pd.DataFrame(columns=["step", "value", "name"])
    return own_limits(run, pd.concat([table, table.iloc[[-1]].assign(step=last)]))


def own_limits(run: Run, table: Frame) -> Frame:
    swings = own.swings_above(run, float(table["oscillation_limit"].iloc[-1]))
    limits = pd.concat(
        [
            table.assign(value=table["limit"], name="stability limit"),
            table.assign(value=table["limit"] * swings, name="oscillation starts"),
        ]
    )[["step", "value", "name"]]
    return limits[np.isfinite(limits["value"])]


def limit_lines(limits: Frame, x: alt.X, names: Frame) -> parts.Layers:
    line = alt.Chart(limits).mark_line(interpolate="step-after", strokeWidth=2)
    tips = [alt.Tooltip("name:N", title=" "), alt.Tooltip("value:Q", format=".4g")]
    return [line.encode(x=x, y="value:Q", color=colour(names), strokeDash=dash(names), tooltip=tips)]


def comparable(table: Frame) -> bool:
    """Whether `limit` is a limit for the Hessian's own eigenvalues: it was taken of the same matrix."""
    pairs = [(row.eigenvalues[0], row.preconditioned) for row in table.itertuples() if len(row.eigenvalues)]
    known = [(a, b) for a, b in pairs if np.isfinite(a) and np.isfinite(b)]
    return (
        bool(known) and all(np.isclose(a, b, rtol=1e-3) for a, b in known) and bool(np.isfinite(table["limit"]).any())
    )


def drawn(names: Frame) -> dict[str, tuple[str, list[int]]]:
    """The styles of what is there to see: a legend names nothing else."""
    return {name: style for name, style in STYLES.items() if name in set(names)}


def colour(names: Frame) -> alt.Color:
    styles = drawn(names)
    scale = alt.Scale(domain=list(styles), range=[style[0] for style in styles.values()])
    return alt.Color("name:N", scale=scale, legend=LEGEND)


def dash(names: Frame) -> alt.StrokeDash:
    styles = drawn(names)
    scale = alt.Scale(domain=list(styles), range=[style[1] for style in styles.values()])
    return alt.StrokeDash("name:N", scale=scale, legend=LEGEND)


def at_step(run: Run, step: int) -> Drawn:
    """The eigenvalues measured at `step` as stems, over the spectral density where one was estimated."""
    table = run.table("curvature", first=step, last=step)
    row, found = table.iloc[0], eigenvalues(table)
    x = alt.X("value:Q", title="eigenvalue", **value_axis(found["value"].to_numpy(), grid=False))
    tips = [
        alt.Tooltip("name:N", title=" "),
        alt.Tooltip("value:Q", format=".4g"),
        alt.Tooltip("residual:Q", format=".2g", title="± residual"),
    ]
    limits = own_limits(run, table) if comparable(table) else found.iloc[:0]
    names = pd.concat([found["name"], limits["name"]])
    stems = alt.Chart(found).encode(x=x, color=colour(names), tooltip=tips)
    rules = alt.Chart(limits).mark_rule(strokeWidth=2)
    layers = [
        *density(row, x),
        stems.mark_rule(strokeWidth=2).encode(y=alt.value(0), y2=alt.value("height")),
        stems.mark_circle(size=60, opacity=1).encode(y=alt.value(8)),
        rules.encode(x=x, color=colour(names), strokeDash=dash(names)),
    ]
    return parts.layer(layers, f"Spectrum after step {step:,}", 300)


def density(row: Frame, x: alt.X) -> parts.Layers:
    """Share of all eigenvalues near each node (a Gauss quadrature of the spectral density), on a log axis."""
    nodes, weights = np.asarray(row["density_nodes"], float), np.asarray(row["density_weights"], float)
    kept = weights > 0
    if not kept.any():
        return []
    data = pd.DataFrame({"value": nodes[kept], "share": weights[kept], "floor": weights[kept].min() / 2})
    y = alt.Y(
        "share:Q",
        title="share of all",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(labelExpr=parts.NUMBER_LABEL, tickCount=4),
    )
    tips = [alt.Tooltip("value:Q", format=".3g"), alt.Tooltip("share:Q", format=".2%")]
    bars = alt.Chart(data).mark_bar(color=GREY, opacity=0.45, size=10)
    return [bars.encode(x=x, y=y, y2="floor:Q", tooltip=tips)]
