"""Weights of very different sizes under one learning rate: what is left to gain lies along the large ones.

Source: lecture, "Ill-conditioned curvature": a change of units is a change of the condition number. A weight that is
counted in units a thousand times smaller has a gradient a thousand times smaller and has a thousand times as far to go.
"""

import numpy as np
import pandas as pd

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _reach as reaching
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

ADAM = "or use torch.optim.Adam, which rescales each coordinate by its own gradients"


def promised(run: Run) -> float:
    """What the loss would change by, to first order, if each tensor moved by its own size along its gradient: the same
    in whatever units the weights are counted."""
    _, _, gradients = run.matrix("layers", "grad_norm", copy=False)
    _, _, sizes = run.matrix("layers", "weight_norm", copy=False)
    return float(np.nansum(gradients[-1] * sizes[-1])) if len(gradients) else 0.0


def stands_still(
    run: Run,
    history: signals.Loss,
    late: pd.DataFrame,
    *,
    flat: float = 0.99,  # of the squared gradient lies where the loss curves next to nothing
    much: float = 0.3,  # of the loss is promised to weights that move by their own size
    nothing: float = 0.01,  # of it is all that as many updates at the largest stable rate could take off
) -> float | None:
    """That promise, of a run that goes straight on along a flat direction and gets nowhere."""
    share, ratio = (signals.median(signals.array(late, name)) for name in ("flat_gradient_share", "stability"))
    half = history.middle_step
    if optimizer.adaptive(run) or not (share >= flat and ratio > 0) or not reaching.straight(run, half):
        return None
    lengths, norms = (signals.inside(run, name, half, history.last_step) for name in ("update_norm", "grad_norm"))
    most = signals.median(lengths) * signals.median(norms) * history.count / min(ratio, 1.0)
    offer = promised(run)
    return offer if offer >= much * abs(history.end) and most <= nothing * abs(history.end) else None


def _stood_since(history: signals.Loss, *, near: float = 0.01) -> int:
    away = np.flatnonzero(np.abs(history.values - history.end) > near * abs(history.end))
    return int(history.steps[min(away[-1] + 1, len(history.steps) - 1)]) if len(away) else history.first_step


def finding(kind: str, run: Run, history: signals.Loss, late: pd.DataFrame, offer: float) -> Finding:
    rate, ratio = optimizer.rate_at(run, late["step"].to_numpy()), signals.median(signals.array(late, "stability"))
    return Finding(
        kind=kind,
        cause="weight-scale",
        severity="warning",
        first_step=_stood_since(history),
        last_step=None,
        layers=(),
        summary=f"The loss stands at {number(history.end)} on a slope so gentle that no stable learning rate moves the "
        f"weights along it: all of the gradient lies where the loss curves less than a hundredth as steeply as across, "
        f"and past {number(rate / ratio)} the rate would be unstable. Yet weights that moved by their own size would "
        f"change the loss by about {number(offer)}: some are counted in units far too small for the others' rate.",
        evidence={
            "promised to weights that move by their size": offer,
            "loss at end": history.end,
            "stability ratio": ratio,
            "share of gradient along flat directions": signals.median(signals.array(late, "flat_gradient_share")),
            "largest eigenvalue": signals.median(signals.tops(late)),
        },
        remedies=(
            "count each weight in units in which it is near 1: train its logarithm, or the weight over its usual size",
            ADAM,
            "or give the large weights a parameter group with a rate of their own",
        ),
        charts=(
            Chart("spectrum", "curvature", ("eigenvalues", "smallest"), "Largest and smallest eigenvalues", log=True),
            LOG_LOSS,
        ),
        formula=r"w = c\,v \;\Rightarrow\; \frac{\partial\mathcal{J}}{\partial v} = c\,\frac{\partial\mathcal{J}}"
        r"{\partial w},\quad \lambda_v = c^2 \lambda_w; \qquad "
        rf"\sum \|\mathbf{{w}}\|\,\|\nabla_{{\mathbf{{w}}}}\mathcal{{J}}\| = {tex(offer)}",
    )
