"""Inputs that nobody standardized, and what to do about them.

Source: lecture, "Ill-conditioned curvature" (normalization).
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._words import number
from diagnostics.run import Run


def raw(run: Run, *, size: float = 5.0) -> bool:
    """Inputs whose root mean square is far from the 1 that initializations assume (5: z leaves [-3, 3] at
    Xavier's scale)."""
    table = run.table("inputs", ["mean", "std"])
    square = table["mean"].to_numpy(dtype=float) ** 2 + table["std"].to_numpy(dtype=float) ** 2
    square = square[~np.isnan(square)]
    return bool(len(square) and np.sqrt(square.mean()) > size)


def first_length(run: Run) -> tuple[float, int]:
    """Root mean square length of the first inputs, as vectors, and their number of features."""
    sizes = _first_sizes(run)
    return float(np.linalg.norm(sizes)), len(sizes)


def summed_size(run: Run) -> float:
    """Of the features of the first inputs: what a sum of them is at most, with weights of size 1."""
    return float(_first_sizes(run).sum())


def _first_sizes(run: Run) -> np.ndarray:
    """Root mean square of each feature."""
    table = run.table("inputs", ["step", "mean", "std"])
    first = table.loc[table["step"] == table["step"].min()]
    return np.hypot(signals.array(first, "mean"), signals.array(first, "std"))


def normalizes(run: Run) -> bool:
    """Whether the network has a layer that scales what it is given."""
    return any("Norm" in each["type"] for each in run.meta["modules"])


def weights_before_batch_norm(run: Run) -> float:
    """How many layers with a weight matrix come before the first batch or instance norm, which takes out what all
    examples have in common and scales the rest; infinite without one. (A layer norm sees one example.)"""
    matrices = by_layer.with_matrix(run)
    count = 0
    for module in run.meta["modules"]:
        if "BatchNorm" in module["type"] or "InstanceNorm" in module["type"]:
            return count
        count += module["name"] in matrices
    return np.inf


def standardize(run: Run) -> str:
    table = run.table("inputs", ["mean", "std"])
    return (
        "standardize the inputs: x = (x - mean) / std (means up to "
        f"{number(np.abs(signals.array(table, 'mean')).max())}, deviations up to "
        f"{number(signals.array(table, 'std').max())})"
    )
