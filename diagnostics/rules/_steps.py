"""The steps that were made against the curvature that was met: the stability ratio, and the overshoot along them.

Both hold only where the optimizer was given the gradient of the loss that the closure computes. A step u = -eta g turns
the gradient along itself into 1 - 2 r of it, r the overshoot ratio: near r = 1 the next one points back.
"""

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._signals import Missing
from diagnostics.run import Run

LEVEL = 0.01  # of the fall that the gradient says, by which losses before and after may differ
RECORDS = 5


def stability(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and stability ratios s of the estimates that have one."""
    table = signals.curvature(run)
    ratios = signals.array(table, "stability")
    kept = ~np.isnan(ratios)
    if not kept.any():
        raise Missing("curvature.stability: no stability ratio is known for this optimizer")
    if _of_another_loss(run):
        raise Missing("curvature.stability: the optimizer was given other gradients than those of the closure's loss")
    return table["step"].to_numpy()[kept], ratios[kept]


def overshoots(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps and overshoot ratios; none where they show that the gradient was of another loss, or of this one times a
    large number (loss scaling, Micikevicius et al. 2018): half of all steps ended as high as they began, and the next
    gradient did not point back."""
    steps, over = signals.column(run, "overshoot")
    return (steps, over) if loss_scale(run) == 1 else (steps[:0], over[:0])


def loss_scale(run: Run) -> float:
    """How many times the loss's own gradient the one is that backward left, as far as the loss itself tells: a step
    that is short beside its curvature changes the loss by g'u."""
    over = signals.column(run, "overshoot")[1]
    off = abs(signals.median(over) - 1) if len(over) >= RECORDS else np.inf
    return 1 / off if 0 < off < LEVEL and signals.median(_cosines(run)) > 0 else 1.0


def overshoots_inside(run: Run, first: int, last: int) -> np.ndarray:
    steps, over = overshoots(run)
    return over[(steps >= first) & (steps <= last)]


def _of_another_loss(run: Run) -> bool:
    """Whether SGD's own gradients are, as where a step is computed by hand and given as one: on the loss's own, what is
    left of a gradient after a step is 1 - 2 r along it, and not all of it."""
    if run.meta["optimizer"] != "SGD" or optimizer.momentum(run) > 0:
        return False
    over, cosines = signals.column(run, "overshoot")[1], _cosines(run)
    if min(len(over), len(cosines)) < RECORDS or not _as_backward_left_them(run):
        return False
    return signals.median(over) > 0.8 and signals.median(cosines) > 0.5


def _as_backward_left_them(run: Run) -> bool:
    """Neither clipped nor divided by a scale."""
    used, left = signals.column(run, "grad_norm")[1], signals.whole_norms(run)[1]
    return signals.median(used) > 0.99 * signals.median(left)


def _cosines(run: Run) -> np.ndarray:
    return signals.column(run, "gradient_cosine")[1]
