"""Losses that were not told: a NaN in their column is no fault."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagnostics.run.reader import Run


def not_told(run: Run, table: Any) -> NDArray:
    """Of rows of `scalars`, with `loss` and `grad_norm`: the updates whose loss `monitor.step` was not given, or could
    not read; also the last, of a loop that ended in between. A loss that is NaN itself has such a gradient, or an event
    of its own."""
    kinds = set(run.table("events", ["kind"])["kind"])
    left_out = np.full(len(table), not kinds.isdisjoint(("step-missing", "loss-unreadable")))
    left_out[-1:] = "non-finite" not in kinds
    loss, norm = (table[name].to_numpy(dtype=float) for name in ("loss", "grad_norm"))
    missing = np.isnan(loss) & np.isfinite(norm) & left_out
    return missing & (not missing.all())
