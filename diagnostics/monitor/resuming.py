"""Whether a directory that holds a run is continued by the training it was begun with: told by the weights' norm."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.run import OTHER_WEIGHTS, load

FAR = 0.1  # of the norm: more than what updates since the last measurement change, less than training does to a start


@torch.no_grad()
def stranger(run_dir: str | os.PathLike, weights: Sequence[Tensor]) -> str:
    """What to add to the note that a run goes on, if these are not the weights it stopped with; else ""."""
    recorded = load(run_dir).table("scalars", ["weight_norm"])["weight_norm"].dropna()
    if recorded.empty or not weights:
        return ""
    before = float(recorded.iloc[-1])
    now = float(stats.squared_norms([each.detach() for each in weights]).sum().sqrt())
    if abs(now - before) <= FAR * before:
        return ""
    return (
        f"{OTHER_WEIGHTS}{run_dir}: their norm was {before:.3g} there and is {now:.3g} now. "
        "If this is another training, give it another run_dir; if it goes on from an earlier update, give its number: "
        "watch(..., first_step=...)"
    )
