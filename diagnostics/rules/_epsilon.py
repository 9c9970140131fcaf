"""How an adaptive optimizer's epsilon compares with the gradients that it is added to.

Source: lecture, "RMSprop and Adam": the step is the gradient over its own size. Where epsilon is far larger than that
size, it is the gradient over epsilon: plain gradient descent at the rate divided by epsilon.
"""

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.run import Run

OUTWEIGHS = 10.0  # times the gradient: what rescaling is left changes a step by a tenth


def rescales(run: Run) -> bool:
    """Whether gradients are divided by their own size, which epsilon does not outweigh."""
    outweighed = _over(run, 0.5) if _is_adadelta(run) else over_gradient(run)  # whose epsilon is added to the squares
    return optimizer.adaptive(run) and outweighed < OUTWEIGHS


def over_gradient(run: Run) -> float:
    """The smallest epsilon of all groups over the root mean square of the entries of a typical gradient; 0 if none."""
    return _over(run, 1.0) if optimizer.adaptive(run) and not _is_adadelta(run) else 0.0  # it scales updates as well


def _is_adadelta(run: Run) -> bool:
    return bool(run.meta["optimizer"] == "Adadelta")


def _over(run: Run, power: float) -> float:
    groups = run.meta["hyperparameters"]
    sizes = [float(group["eps"]) ** power for group in groups if isinstance(group.get("eps"), int | float)]
    norm = signals.median(signals.column(run, "grad_norm")[1])
    trained = [each for each in run.meta["layers"] if each.get("optimized") and not each.get("frozen")]
    count = sum(int(each.get("parameters") or 0) for each in trained)
    if len(sizes) < max(1, len(groups)) or not norm > 0 or not count:
        return 0.0
    return float(min(sizes) / (norm / np.sqrt(count)))
