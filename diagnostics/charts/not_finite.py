"""Where a loss or a gradient norm is NaN or infinite by a fault: what the charts mark red.

Not every such value is one. What the rules leave out, a mark must not accuse: losses that were not told, updates that
were skipped, and what was never measured.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts.reduce import spans
from diagnostics.rules import _signals as signals
from diagnostics.run import Run

EVERY_UPDATE = ("loss", "grad_norm")  # elsewhere NaN means "not measured at this update", which is no fault


def excused(run: Run, column: str) -> NDArray:
    """Steps (N,) at which this column of `scalars` is NaN or infinite without a fault."""
    table = run.table("scalars", ["step", "loss", "grad_norm"])
    steps, values = table["step"].to_numpy(), signals.array(table, column)
    if np.isnan(values).all() and (column != "loss" or not signals.nonfinite_events(run)):
        return steps
    left_out = np.isin(steps, signals.events(run, "skipped-step")["step"].to_numpy())
    if column == "loss":
        left_out |= signals.not_told(run, table)
    return steps[left_out & ~np.isfinite(values)]


def marks(steps: NDArray, values: NDArray, what: str) -> pd.DataFrame:
    """step, until, note of each stretch in which values (T,) are NaN or infinite."""
    rows = [
        (float(a), float(b) + 1, f"{what}: {count:,} × NaN or infinite, step {a:,} to {b:,}")
        for a, b, count in spans(steps, ~np.isfinite(values))
    ]
    return pd.DataFrame(rows, columns=["step", "until", "note"]).astype({"step": float, "until": float})
