"""Inputs that become larger or smaller while training: data that each reading rescales once more.

Source: NumPy and PyTorch, whose `/=` writes to the array that an item of a data set is a view of.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run


def inputs_change(
    run: Run,
    *,
    measured: int = 8,
    times: float = 10.0,  # as large at last as at first, or as small: augmentation and curricula change less
    together: float = 1.5,  # features' factors, of their median: data that are others change by feature
    of_features: float = 0.9,  # of those that vary at all
) -> Iterator[Finding]:
    _, _, sizes = run.matrix("inputs", "batch_rms")
    if len(sizes) < measured or np.isnan(sizes).any() or not len(signals.column(run, "constant_loss")[1]):
        return  # without targets the inputs may be another network's outputs, or states that a policy leads to
    early, late = np.median(sizes[:3], axis=0), np.median(sizes[-len(sizes) // 4 :], axis=0)
    tiny = 1e-6 * max(early.max(), late.max())  # below, a feature that hardly varies
    seen = (early > tiny) | (late > tiny)
    if not seen.any():
        return
    early, late = np.maximum(early[seen], tiny), np.maximum(late[seen], tiny)
    factors = late / early
    factor = float(np.median(factors))
    alike = (factors <= together * factor) & (factors >= factor / together) | (np.minimum(early, late) <= tiny)
    if not (factor >= times or factor <= 1 / times) or alike.mean() < of_features:
        return
    first, last = (float(np.sqrt(np.mean(each**2))) for each in (early, late))
    yield found(
        "inputs-change",
        signals.first_step(run),
        (),
        f"The inputs {'grow' if factor > 1 else 'shrink'} while training, all features alike: their root mean square "
        f"was {number(first)} in the first batches that were measured and is {number(last)} in the last. Each reading "
        "seems to rescale the stored data once more.",
        {"size at first": first, "size at last": last},
        (
            "make a new tensor in the data set's __getitem__: x = (x - mean) / std, not x -= mean or x /= 255, which "
            "write to the stored one",
            "or transform all data once, before training",
        ),
        severity=unless_it_learns(run, "critical"),
        chart=Chart("line", "inputs", ("batch_rms",), "Size of the inputs", log=True),
    )
