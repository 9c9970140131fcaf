"""Weights that were frozen all along, where they are most of a network: said beside a loss that stands still."""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules._words import names_of, number
from diagnostics.run import Run

UNFREEZE = (
    "look which weights are frozen: print([n for n, p in model.named_parameters() if not p.requires_grad]); to train "
    "them, model.requires_grad_(True)"
)


def said_of_frozen(run: Run, *, most: float = 0.5) -> str:
    """A sentence, where at least `most` of all weights had `requires_grad=False` in all measured updates; else ""."""
    _, names, norms = run.matrix("layers", "grad_norm", copy=False)
    sizes = {name: each["parameters"] for name, each in by_layer.described(run).items()}
    frozen = [str(name) for name in names[np.isnan(norms).all(0)]] if len(norms) else []
    share = sum(sizes.get(name, 0) for name in frozen) / max(1, sum(sizes.get(str(name), 0) for name in names))
    if not most <= share < 1:
        return ""
    return (
        f" {number(100 * share)} % of the weights were frozen all along ({names_of(frozen)}): the others alone learn."
    )
