"""Updates whose gradients promise far more than there is to gain, in a run that gains little.

Source: lecture, "Learning Rate"; Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural
networks" (what is multiplied by large weights at every step has a gradient that grows with each).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM, LOG_LOSS
from diagnostics.rules._finding import Finding
from diagnostics.rules._words import names_of, number, tex
from diagnostics.run import Run


class Large(NamedTuple):
    """Matrices that began with numbers far larger than keep what passes through of one size, and the size of these of
    the first."""

    names: tuple[str, ...]
    size: float
    fitting: float


def in_vain(
    kind: str,
    run: Run,
    history: signals.Loss,
    *,
    left: float = 0.85,  # of the starting loss, at the least
    times: float = 10.0,  # the loss itself: more than all of it no update can take; healthy ones promise a tenth
    least: int = 3,  # updates that were measured
) -> Iterator[Finding]:
    """The promise is the slope along the update, times the update; that the gradient is the recorded loss's own, which
    may be scaled or summed where the loss is not, the stability ratio says."""
    ratio = signals.median(signals.array(run.table("curvature", ["stability"]), "stability"))
    if not ratio > times:
        return
    steps, slopes = signals.column(run, "slope")
    if len(slopes) < least or history.count < 20 or not min(history.end, history.best) >= left * history.start > 0:
        return
    there = max(history.start, float(np.ptp(history.values[np.isfinite(history.values)])))
    promised = float(np.median(np.abs(slopes)))
    if not promised > times * there:
        return
    large, rate = _large(run), optimizer.highest_rate(run, history.last_step)
    fitting = rate * there / promised
    yield Finding(
        kind,
        "initialization" if large else "learning-rate",
        "critical",
        int(steps[0]),
        None,
        large.names if large else (),
        f"By its gradient an update would take {number(promised)} off a loss of {number(history.start)}, and little "
        f"comes of it: the loss ended at {number(history.end)}. The updates go {number(promised / there)} times as far "
        "as such a slope can go on." + (_of_size(large) if large else ""),
        {
            "change of the loss that an update promises": promised,
            "loss at start": history.start,
            "loss at end": history.end,
            "learning rate": rate,
            "stability ratio": ratio,
            **({"size of weights at start": large.size, "size that fits": large.fitting} if large else {}),
        },
        (
            *([_SMALLER] if large else []),
            f"{'or, if so steep a loss is meant,' if large else 'try'} a learning rate of {number(fitting)} at most: "
            "an update then promises no more than there is",
            *([] if optimizer.adaptive(run) else ["or clip the gradient's norm: torch.nn.utils.clip_grad_norm_"]),
        ),
        (
            GRADIENT_NORM,
            LOG_LOSS,
        ),
        rf"|g^\top \Delta\theta| = {tex(promised)} \gg \mathcal{{L}} = {tex(history.start)}",
    )


_SMALLER = (
    "start with smaller weights: W / sqrt(inputs), or torch.nn.init.orthogonal_(W) for those that are applied at every "
    "step of a recurrence"
)


def _of_size(large: Large) -> str:
    return (
        f" {names_of(large.names)} began large, with numbers of size {number(large.size)}, where "
        f"{number(large.fitting)} keeps what passes through of one size."
    )


def _large(run: Run, *, times: float = 3.0) -> Large | None:
    """Of random numbers a unit gets their size times the root of how many inputs it has: of a matrix of unknown sense
    at least the smaller side. What is looked up in a table is multiplied by nothing."""
    _, names, norms = run.matrix("layers", "weight_norm")
    found = list[tuple[float, str, float, float]]()
    for name, norm in zip(map(str, names), norms[0].tolist() if len(norms) else [], strict=False):
        shape, owner = by_layer.described(run).get(name, {}).get("shape", ()), by_layer.type_of(run, name)
        if len(shape) < 2 or "Embedding" in owner:
            continue
        inputs = min(shape[:2]) * math.prod(shape[2:]) if "Conv" in owner else min(shape[-2:])
        size, fitting = norm / math.sqrt(math.prod(shape)), 1 / math.sqrt(inputs)
        if size > times * fitting:
            found.append((size / fitting, name, size, fitting))
    found.sort(reverse=True)
    return Large(tuple(name for _, name, _, _ in found), *found[0][2:]) if found else None
