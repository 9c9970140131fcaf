"""How an adaptive optimizer's epsilon compares with the gradients that it is added to.

Source: lecture, "RMSprop and Adam": the step is the gradient over its own size. Where epsilon is far larger than that
size, it is the gradient over epsilon: plain gradient descent at the rate divided by epsilon.
"""

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.run import Run

OUTWEIGHS = 10.0  # times the gradient: what rescaling is left changes a step by a tenth


def over_gradient(run: Run) -> float:
    """The smallest epsilon of all groups over the root mean square of the entries of a typical gradient; 0 if none."""
    groups = run.meta["hyperparameters"]
    sizes = [float(group["eps"]) for group in groups if isinstance(group.get("eps"), int | float)]
    norm = signals.median(signals.column(run, "grad_norm")[1])
    trained = [each for each in run.meta["layers"] if each.get("optimized") and not each.get("frozen")]
    count = sum(int(each.get("parameters") or 0) for each in trained)
    rescales = optimizer.adaptive(run) and run.meta["optimizer"] != "Adadelta"  # whose epsilon scales updates as well
    if not rescales or len(sizes) < max(1, len(groups)) or not norm > 0 or not count:
        return 0.0
    return float(min(sizes) / (norm / np.sqrt(count)))
