"""Logits of a probability that cannot fall, as behind a ReLU: "no" costs log 2 at best.

Source: lecture, "Plateaux"; the cross-entropy of a target of 0, -log(1 - sigmoid(z)) = log(1 + e^z), at the least z.
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Finding
from diagnostics.rules._loss_finding import warned
from diagnostics.rules._words import number
from diagnostics.run import Run

_LEAST = {"relu": 0.0, "softplus": 0.0, "elu": -1.0, "gelu": -0.17, "silu": -0.278}  # what each gives at least
_BINARY = ("sigmoid -> binary_cross_entropy", "binary_cross_entropy_with_logits")


def one_sided(kind: str, run: Run, history: signals.Loss, *, part: float = 0.1) -> Finding | None:
    """By the functions on the way alone: if a tenth of the targets are 0 the loss cannot be lower than it is."""
    function, _, rest = signals.loss_path(run).partition(" -> ")
    if function not in _LEAST or not rest.startswith(_BINARY):
        return None
    least = _LEAST[function]
    floor = float(np.log1p(np.exp(least)))
    if not history.end >= part * floor:
        return None
    values = "is never negative" if least == 0 else f"is never below {number(least)}"
    return warned(
        kind,
        "target-range",
        history.first_step,
        (
            f"The sigmoid of the loss is given what a {function} gives, which {values}: no probability comes below "
            f"{number(1 / (1 + np.exp(-least)))}, and each target of 0 costs {number(floor)} at least (the loss ended "
            f"at {number(history.end)})."
        ),
        {"loss at end": history.end, "least loss of a target of 0": floor},
        (f"leave the {function} at the output out: the sigmoid takes any number, and negative ones mean no",),
        r"-\log\,(1 - \sigma(z)) = \log\,(1 + e^{z}) \;\ge\; "
        + (
            r"\log 2 \quad\text{where}\quad z \ge 0"
            if least == 0
            else rf"{floor:.2f} \quad\text{{where}}\quad z \ge {least:g}"
        ),
    )
