r"""At the edge of stability.

## What it is
The sharpness has risen to the stability limit and stays there while the loss goes on falling, in steps that are no
longer all downhill. This is how full-batch training of networks normally proceeds; it is no fault.

## What we look at
The stability ratio: between 0.9 and 1.15 in most of the later estimates, with a loss that goes on falling, or stands
because the updates bounce; under an adaptive optimizer also with one that has risen again from next to nothing to a
little more.

## Why it happens
Gradient descent drifts towards higher curvature until $\lambda_{\max} \approx 2/\alpha$. Beyond it the steepest
direction begins to oscillate, and the third-order terms of the loss answer by lowering the curvature: the
oscillation stabilizes itself. Adaptive optimizers do the same on the Hessian they see. They come there on any loss,
even a quadratic, when it is nearly gone: they divide by the size of the gradients, which go with it, until the steps
are at the limit and the gradients grow again.

## What to try
Nothing is needed. A higher learning rate leads to flatter regions, a lower one follows the loss more closely; one that
falls to zero keeps the lowest loss.

## When this is wrong
On a quadratic the curvature cannot fall, so gradient descent that hovers near 1 there does so by luck.

## In the lecture
Not treated there; it is what its limit $\alpha < 2/\lambda_{\max}$ turns into when $\lambda_{\max}$ can move.
Source: Cohen et al., "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability" (2021);
Damian et al. (2023)."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run

KIND = "edge-of-stability"
RANK = 14


def check(
    run: Run,
    *,
    low: float = 0.9,  # of the limit: measured hovering of full-batch runs is 0.9 to 1.15 for every optimizer tried
    high: float = 1.15,  # upper end of the same
    estimates: int = 3,  # one or two near the limit may be passing through
    mostly: float = 0.6,  # of the later estimates
    fallen: float = 0.9,  # of the starting loss, at the end: a run that does not learn is at no edge
    risen: float = 10.0,  # times the lowest loss
    nothing: float = 1e-2,  # of the starting loss: a run that ends higher may have been hurt
    bounces: float = 0.5,  # overshoot ratio: at the minimum along the update
) -> Iterator[Finding]:
    history = signals.loss(run)
    steps, ratios = steps_made.stability(run)
    if len(steps) < estimates or history.count < 20:
        return
    at_edge = (ratios >= low) & (ratios <= high)
    rescales = optimizer.adaptive(run)
    # Where neither the curvature nor what it is divided by can move, nothing settles at the limit.
    if not at_edge.any() or (quadratic.exact(run) and not rescales):
        return
    first = int(np.flatnonzero(at_edge)[0])
    later = at_edge[first:]
    if len(later) < estimates or later.mean() < mostly or not later[-estimates:].any():
        return
    ratio, step = number(float(np.median(ratios[first:]))), int(steps[first])
    if rescales and 0 <= risen * history.best < history.end < nothing * history.start:
        words = (
            f"The loss came down from {number(history.start)} to {number(history.best)} and is at "
            f"{number(history.end)} again: the gradients had become so small that the steps, divided by their size, "
            f"grew to the stability limit (s = {ratio} since step {step}). Beside where it began that is nothing."
        )
        remedy = "to keep the lowest loss, let the rate fall to 0 towards the end, or stop there; or use amsgrad=True"
    elif quadratic.exact(run) or not history.end < history.start - (1 - fallen) * abs(history.start):
        return
    elif signals.trend(history.after(step)).z > 3:
        words = (
            f"Since step {step} the stability ratio hovers at {ratio} while the loss falls (to "
            f"{number(history.end)}): the edge of stability, which is normal."
        )
        remedy = "nothing needs to change"
    elif signals.median(steps_made.overshoots_inside(run, step, history.last_step)) >= bounces:
        words = (
            f"Since step {step} the stability ratio hovers at {ratio} and the loss, at {number(history.end)}, falls no "
            "more: each update goes past the minimum along it, and the next one comes back."
        )
        remedy = f"lower the learning rate from {number(optimizer.last_rate(run))} tenfold, at least towards the end"
    else:
        return
    yield Finding(
        kind=KIND,
        cause=None,
        severity="info",
        first_step=step,
        last_step=None,
        layers=(),
        summary=words,
        evidence={
            "median stability ratio": float(np.median(ratios[first:])),
            "estimates": float(len(later)),
            "loss at end": history.end,
        },
        remedies=(remedy,),
        charts=(
            Chart("stability", "curvature", ("stability",), "Stability ratio against this optimizer's limits"),
            LOG_LOSS,
        ),
        formula=r"\lambda_{\max} \to \frac{2}{\alpha} \;\Leftrightarrow\; s \to 1",
    )
