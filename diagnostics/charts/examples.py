"""Examples of one batch as the loss got them, beside each other: what went in, the target, and the answer."""

import math
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts import parts, rasters
from diagnostics.charts.parts import Drawn, Frame
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run

ROLES = ("input", "target", "answer")
MOST = 8  # beside each other: more are too small to be known
WRITTEN = 12  # numbers or classes; more are drawn
NARROW = 8  # series beside each other
ROUNDED = 1e-5  # of the largest number: targets that are read off a gradient are as exact as that
A_LINE = 12  # letters that fit beside each other
LINE, PICTURE, GAP = 17, 96, 14  # heights in pixels
# Of words that belong to no series, on whichever page: Vega knows what lies behind them.
INK = alt.ExprRef("luminance(background || 'white') > 0.4 ? '#31333f' : '#fafafa'")


def examples(run: Run, chart: Chart, finding: Finding | None = None) -> Drawn:
    """Of the last batch that was kept."""
    steps = kept(run)
    if not len(steps):
        return parts.empty("No examples were kept: diagnostics.watch(..., examples=8) keeps some")
    return of_step(run, int(steps[-1]), chart.title)


def kept(run: Run) -> NDArray:
    """The steps of which there are examples."""
    return np.unique(run.steps("examples"))


def of_step(run: Run, step: int, title: str) -> Drawn:
    rows: Frame = run.table("examples", first=step, last=step)
    fit = np.array([_fits(*each) for each in zip(rows["size"], rows["values"], strict=True)], bool)
    rows = rows[fit & rows["example"].between(0, MOST - 1)].drop_duplicates(["example", "role"])
    if rows.empty:
        return parts.empty("No example of this batch can be read")
    cells, names, height = list[dict[str, Any]](), list[dict[str, Any]](), 0.0
    scales = {"input": _scale(rows[rows["role"] == "input"]), "answer": _scale(rows[rows["role"] != "input"])}
    for role in [role for role in ROLES if (rows["role"] == role).any()]:
        scale, of_role = scales.get(role, scales["answer"]), rows[rows["role"] == role]
        some = [_cell(row, scale) for _, row in of_role.iterrows()]
        drawn = any(each["url"] for each in some)
        tall = PICTURE if drawn else LINE * max(each["text"].count("\n") + 1 for each in some)
        middle = height + tall / 2
        cells += [each | {"y": middle} for each in some]
        shaded = drawn and (of_role["kind"] == "numbers").all()
        extent = f"{scale[0]:.3g} to {scale[1]:.3g}" if shaded else ""
        names.append({"column": "", "y": middle, "text": role.capitalize(), "extent": extent})
        height += tall + GAP
    data: Frame = pd.DataFrame(cells)
    labels: Drawn = alt.Chart(pd.DataFrame(names))
    x = alt.X("column:N", axis=None, sort=None, scale=alt.Scale(domain=["", *map(str, sorted(set(rows["example"])))]))
    y = alt.Y("y:Q", axis=None, scale=None)
    tooltip = [alt.Tooltip("note:N", title=" ")]
    pictures = alt.Chart(data[data["url"] != ""]).mark_image(
        width=alt.ExprRef(f"min({PICTURE}, 0.94 * bandwidth('x'))"), height=PICTURE
    )
    texts = alt.Chart(data[data["url"] == ""]).mark_text(color=INK, fontSize=12, lineBreak="\n", lineHeight=LINE)
    layers = [
        pictures.encode(x=x, y=y, url="url:N", tooltip=tooltip),
        texts.encode(x=x, y=y, text="text:N", tooltip=tooltip),
        labels.mark_text(color=INK, fontSize=12, fontWeight="bold").encode(x=x, y=y, text="text:N"),
        labels.mark_text(color=INK, fontSize=11, dy=LINE).encode(x=x, y=y, text="extent:N"),
    ]
    return parts.layer(layers, title, round(height) + 40)  # title included


def _fits(size: NDArray, values: NDArray) -> bool:
    """A run may come from anybody."""
    known = all(side >= 1 and side % 1 == 0 for side in size) and (len(size) < 3 or size[2] == 3)
    return 0 < len(size) <= 3 and known and math.prod(size) == len(values)


def _cell(row: Frame, scale: rasters.Range) -> dict[str, Any]:
    values, size = np.asarray(row["values"], float), tuple(int(n) for n in row["size"])
    draw = _drawing(row["kind"], size, scale)
    text = "" if draw else _written(values, row["kind"], row["certainty"], ROUNDED * max(map(abs, scale)))
    return {
        "column": str(row["example"]),
        "role": row["role"],
        "url": draw(values.reshape(size)) if draw else "",
        "text": text,
        "note": f"example {row['example'] + 1}, {row['role']}" + (f": {text}" if text else _extent(values)),
    }


def _drawing(kind: str, size: tuple[int, ...], scale: rasters.Range) -> Callable[[NDArray], str] | None:
    """How a value of this size is drawn; `None` where it is written."""
    if len(size) < 2:
        written = kind == "classes" or sum(size) <= WRITTEN
        return None if written else partial(rasters.bars, scale=scale)
    if kind == "classes":
        return rasters.classes
    if len(size) == 2 and min(size) <= NARROW < max(size):
        along = size[0] >= size[1]
        return lambda values: rasters.lines(values if along else values.T, scale)
    return partial(rasters.image, scale=scale)


def _written(values: NDArray, kind: str, certainty: float, rounded: float) -> str:
    if kind == "classes":
        words = ["–" if value < 0 else f"{value:.0f}" for value in values]
        if len(words) == 1:
            return words[0] + (f"\n{100 * certainty:.3g} %" if certainty < 0.995 else "")
    else:
        digits = 3 if len(values) == 1 else 2
        words = [f"{0.0 if abs(value) <= rounded else value:.{digits}g}" for value in values]
    shown = words[:WRITTEN] + (["…"] if len(words) > WRITTEN else [])
    return "\n".join(textwrap.wrap(" ".join(shown), A_LINE))


def _scale(rows: Frame) -> rasters.Range:
    """From the smallest number to the largest, of all examples together."""
    values = [np.asarray(each, float) for each in rows.loc[rows["kind"] == "numbers", "values"]]
    finite = np.concatenate(values) if values else np.zeros(0)
    finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _extent(values: NDArray) -> str:
    finite = values[np.isfinite(values)]
    return f", from {finite.min():.3g} to {finite.max():.3g}" if len(finite) else ", no finite number"
