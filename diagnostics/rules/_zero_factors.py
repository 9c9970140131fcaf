"""Factors of one product that are all zero: each one's gradient has another as a factor, and none ever moves.

Source: lecture, "Saddle points" ("don't initialize all your weights to zero!"). It is the symmetry of all their
dimensions, which nothing tells apart, where no other layer lies between that the units could be read from.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENTS, LOSS
from diagnostics.rules._finding import Finding
from diagnostics.rules._words import names_of
from diagnostics.run import Run

AWAY_FROM_ZERO = (
    "start all but one of the factors with small random values: torch.nn.init.normal_(weight, std=0.02), say",
)


def zero_factors(run: Run, *, records: int = 3) -> tuple[str, ...]:
    """Trained matrices that began as zeros and got exactly no gradient in any of so many measured updates, if there are
    two and more."""
    steps, names, norms = run.matrix("layers", "grad_norm", copy=False)
    if len(steps) < records or (norms[0] > 0).all():
        return ()
    weights = run.matrix("layers", "weight_norm")[2]
    layers = by_layer.described(run)
    found = [
        str(name)
        for at, name in enumerate(names)
        if (norms[:, at] == 0).all()
        and np.nanmax(weights[:, at], initial=0.0) == 0
        and len(layers.get(str(name), {}).get("shape", [])) > 1
        and not layers[str(name)].get("frozen")
    ]
    return tuple(found) if len(found) > 1 else ()


def stuck_at_zero(kind: str, run: Run, *, learned: float = 0.7) -> Iterator[Finding]:
    """`learned`: of the untrained loss, from which on the rest of the network learns without them."""
    names = zero_factors(run)
    if not names:
        return
    steps = run.matrix("layers", "grad_norm", copy=False)[0]
    yield Finding(
        kind=kind,
        cause="zero-initialization",
        severity="warning" if signals.has_learned(run, learned) else "critical",
        first_step=int(steps[0]),
        last_step=None,
        layers=names,
        summary=f"{names_of(names)} began as zeros and got exactly no gradient in all {len(steps)} measured updates: "
        "each one's gradient has another as a factor, so that all of their dimensions stay the same.",
        evidence={"tensors": float(len(names)), "records": float(len(steps))},
        remedies=(*AWAY_FROM_ZERO, "or leave out the line that sets them to zero"),
        charts=(
            GRADIENTS,
            LOSS,
        ),
        formula=r"\hat{y} = \mathbf{u}^\top\mathbf{v} \;\Rightarrow\; \frac{\partial\hat{y}}{\partial\mathbf{u}} = "
        r"\mathbf{v} = 0, \; \frac{\partial\hat{y}}{\partial\mathbf{v}} = \mathbf{u} = 0",
    )
