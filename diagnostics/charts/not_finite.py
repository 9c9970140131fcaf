"""Where a loss or a gradient norm is NaN or infinite by a fault: what the charts mark red.

Not every such value is one. What the rules leave out, a mark must not accuse: losses that were not told, updates that
were skipped, and what was never measured.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts.reduce import spans
from diagnostics.run import Run, not_told

EVERY_UPDATE = ("loss", "grad_norm")  # elsewhere NaN means "not measured at this update", which is no fault


def excused(run: Run, column: str) -> NDArray:
    """Steps (N,) at which this column of `scalars` is NaN or infinite without a fault."""
    table, events = run.table("scalars", ["step", "loss", "grad_norm"]), run.table("events", ["step", "kind"])
    steps, values = table["step"].to_numpy(), table[column].to_numpy(float)
    if np.isnan(values).all() and (column != "loss" or "non-finite" not in set(events["kind"])):
        return steps
    left_out = np.isin(steps, events.loc[events["kind"] == "skipped-step", "step"].to_numpy())
    if column == "loss":
        left_out |= not_told(run, table)
    return steps[left_out & ~np.isfinite(values)]


def until_lost(run: Run, *, more: float = 0.25, least: int = 10) -> int | None:
    """The last step to show of a run whose loss is not finite from some step on to its end: a quarter more than it
    lasted. `None` where that is most of the run, as it is of one that was stopped then."""
    if np.isfinite(run.table("scalars", ["loss"], first=run.last_step)["loss"]).any():  # the last one alone
        return None
    table = run.table("scalars", ["step", "loss"])
    steps, finite = table["step"].to_numpy(), np.flatnonzero(np.isfinite(table["loss"].to_numpy(float)))
    if not len(finite) or np.isin(steps[finite[-1] + 1 :], excused(run, "loss")).all():
        return None
    lasted = int(steps[finite[-1]])
    last = lasted + max(least, int(more * lasted))
    return last if last < steps[-1] / 2 else None


def marks(steps: NDArray, values: NDArray, what: str) -> pd.DataFrame:
    """step, until, note of each stretch in which values (T,) are NaN or infinite."""
    rows = [
        (float(a), float(b) + 1, f"{what}: {count:,} × NaN or infinite, step {a:,} to {b:,}")
        for a, b, count in spans(steps, ~np.isfinite(values))
    ]
    return pd.DataFrame(rows, columns=["step", "until", "note"]).astype({"step": float, "until": float})
