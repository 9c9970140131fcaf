"""The numbers of the training timeline, thinned: what goes to the browser at each zoom, and nothing else."""

from math import ceil, floor

import numpy as np
import pandas as pd

from diagnostics.charts.not_finite import excused, marks
from diagnostics.charts.parts import Frame
from diagnostics.charts.reduce import BUCKETS, largest_of, smooth, thin
from diagnostics.charts.theme import SIGNS
from diagnostics.rules import Finding
from diagnostics.run import Run

HAIRS = 150  # positions of the cross-hair
NORMS = {"grad_norm": "gradient norm", "grad_norm_unclipped": "before clipping", "update_norm": "update norm"}


def datasets(
    run: Run, findings: tuple[Finding, ...], shown: tuple[float, float] | None, window: int
) -> dict[str, pd.DataFrame]:
    """Name -> data of `timeline.specification`; the panels only within `shown`, so that zooming refines them."""
    columns = [name for name in ("step", "loss", "lr", *NORMS) if name in run.columns("scalars")]
    scalars: Frame = run.table("scalars", ["step", "loss"])
    first, last = ends(scalars)
    cut: Frame = run.table("scalars", columns, first=shown and ceil(shown[0]), last=shown and floor(shown[1]))
    return {
        "overview": line(scalars["step"], scalars["loss"], "loss", 300),
        "whole": pd.DataFrame({"step": [first, last]}),
        "lanes": lanes(findings, first, last),
        "ends": pd.DataFrame({"step": [first, last] if shown is None else list(shown)}),
        "loss": loss_lines(cut, window),
        "norms": pd.concat([measured_line(cut, column, name) for column, name in NORMS.items()], ignore_index=True),
        "lr": rate_lines(cut, run.table("curvature", ["step", "stability"])),
        "bad": non_finite(run, cut),
        "hair": hair(cut),
    }


def ends(scalars: Frame) -> tuple[float, float]:
    """First and last update, at least one apart."""
    if scalars.empty:
        return 0.0, 1.0
    first, last = float(scalars["step"].iloc[0]), float(scalars["step"].iloc[-1])
    return first, max(last, first + 1)


def line(steps: Frame, values: Frame, name: str, buckets: int = BUCKETS) -> pd.DataFrame:
    kept, numbers = thin(np.asarray(steps), np.asarray(values), buckets=buckets)
    return pd.DataFrame({"step": kept, "value": numbers, "name": name})


def loss_lines(scalars: Frame, window: int) -> pd.DataFrame:
    """The loss as recorded, and its running mean over `window` updates."""
    lines = [line(scalars["step"], scalars["loss"], "loss")]
    if window > 1:
        lines.append(line(scalars["step"], smooth(scalars["loss"].to_numpy(float), window), "smoothed"))
    return pd.concat(lines, ignore_index=True)


def measured_line(scalars: Frame, column: str, name: str) -> pd.DataFrame:
    if column not in scalars:
        return line([], [], name)
    measured = scalars[scalars[column].notna()]
    return line(measured["step"], measured[column], name)


def rate_lines(scalars: Frame, curvature: Frame) -> pd.DataFrame:
    """The rate used, and the largest stable one: s grows in proportion to the rate, so that one is lr / s.

    Both points of every change are kept, because thinning would draw a ramp where the rate jumped.
    """
    rates = scalars[scalars["lr"].notna()]
    steps, values = rates["step"].to_numpy(float), rates["lr"].to_numpy()
    jumps = np.flatnonzero(np.diff(values)) if len(values) else np.array([], int)
    kept = np.unique(np.concatenate([[0], jumps, jumps + 1, [len(values) - 1]]).astype(int)) if len(values) else jumps
    used = line(steps[kept], values[kept], "learning rate")
    limit = curvature[curvature["stability"] > 0].merge(rates[["step", "lr"]], on="step")
    limit = limit.iloc[largest_of(limit["step"].to_numpy(), limit["stability"].to_numpy())]
    limit = limit.assign(value=limit["lr"] / limit["stability"], name="largest stable rate")
    return pd.concat([used, limit[["step", "value", "name"]]], ignore_index=True)


def lanes(findings: tuple[Finding, ...], first: float, last: float) -> pd.DataFrame:
    """One row a finding: its span, its words, and how strongly the panels shade it."""
    rows = []
    for lane, finding in enumerate(findings):
        sign = SIGNS[finding.severity]
        until = last if finding.last_step is None else float(np.clip(finding.last_step + 1, first, last))
        label = f"{sign.glyph} {finding.kind.replace('-', ' ')} from step {finding.first_step:,}"
        begin = float(np.clip(finding.first_step, first, last))
        shade = 0.1 if finding.severity == "critical" else 0.0
        rows.append((begin, until, lane, sign.colour, label, shade, finding.summary))
    return pd.DataFrame(rows, columns=["step", "until", "lane", "colour", "label", "shade", "summary"])


def non_finite(run: Run, cut: Frame) -> pd.DataFrame:
    """Stretches of what is shown where loss or gradient norm are NaN or infinite by a fault."""
    found = []
    for panel, column, what in (("loss", "loss", "Loss"), ("norms", "grad_norm", "Gradient norm")):
        kept = cut[~cut["step"].isin(excused(run, column))]
        found.append(marks(kept["step"].to_numpy(), kept[column].to_numpy(float), what).assign(panel=panel))
    return pd.concat(found, ignore_index=True)


def hair(scalars: Frame) -> pd.DataFrame:
    """What the cross-hair tells, as text, at evenly spaced updates."""
    rows = scalars.iloc[np.unique(np.linspace(0, max(len(scalars) - 1, 0), min(HAIRS, len(scalars))).astype(int))]
    shown = {column: rows[column].map("{:.4g}".format) for column in ("loss", "grad_norm", "lr")}
    return pd.DataFrame({"step": rows["step"].astype(float), **shown})
