"""Inputs that nobody standardized, and what to do about them.

Source: lecture, "Ill-conditioned curvature" (normalization).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._words import number
from diagnostics.run import Run


@dataclass(frozen=True)
class Given:
    """What a layer is given from outside: the root mean square length of one input, as a vector, its features, the sum
    of their sizes, and the largest of their means and deviations."""

    layer: str  # "" of the first one
    length: float
    features: int
    total: float
    mean: float
    deviation: float

    @property
    def size(self) -> float:
        """Of one feature: 1 where standardized."""
        return self.length / max(self.features, 1) ** 0.5


def given(run: Run) -> Given:
    """Of all that layers are given from outside the largest; of length 0 where none was observed."""
    return max(_given(run), key=lambda each: each.size, default=Given("", 0.0, 0, 0.0, 0.0, 0.0))


def raw(run: Run, *, size: float = 5.0) -> bool:
    """Inputs whose root mean square is far from the 1 that initializations assume (5: z leaves [-3, 3] at
    Xavier's scale)."""
    return given(run).size > size


def follows(run: Run, layer: str, activation: str) -> bool:
    """Whether an activation stands behind a layer that is given inputs; the first one, where that is not known."""
    names = [name for name in by_layer.activations(run) if not name.startswith("loss.")]
    order, base = [each["name"] for each in run.meta["modules"]], activation.split("#")[0]
    if layer not in order or base not in order:
        return not names or names[0] == activation
    matrices = by_layer.with_matrix(run)
    return [name for name in order[: order.index(base)] if name in matrices][-1:] == [layer]


def standardize(run: Run) -> str:
    found = given(run)
    what = f"what {found.layer} is given" if found.layer else "the inputs"
    return (
        f"standardize {what}: x = (x - mean) / std (means up to {number(found.mean)}, deviations up to "
        f"{number(found.deviation)})"
    )


def first_length(run: Run) -> tuple[float, int]:
    """Root mean square length of the first inputs, as vectors, and their number of features."""
    table = run.table("inputs", ["step", "mean", "std"])
    first = table.loc[table["step"] == table["step"].min()]
    sizes = np.hypot(signals.array(first, "mean"), signals.array(first, "std"))
    return float(np.linalg.norm(sizes)), len(sizes)


def _given(run: Run) -> Iterator[Given]:
    (_, names, means), (_, _, deviations) = (run.matrix("inputs", column) for column in ("mean", "std"))
    means, known = np.abs(means), ~np.isnan(means + deviations)
    if known.any():
        sizes, features = np.hypot(means[known], deviations[known]), len(names)
        length, total = float((np.square(sizes).mean() * features) ** 0.5), float(sizes.mean() * features)
        yield Given("", length, features, total, float(means[known].max()), float(deviations[known].max()))
    for weight, *found in run.meta["inputs_beside"]:
        yield Given(weight.rpartition(".")[0] or weight, *found)


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
