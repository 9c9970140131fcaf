"""First updates so long that the weights they leave are several times those that there were.

Source: lecture, "Learning Rate" ("α much too large: instability"); of weights whose size does not matter to the loss,
as before a normalization: van Laarhoven 2017, "L2 Regularization versus Batch and Weight Normalization" (the larger
they are, the less a step turns them).
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM, LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._rolling import recent_median
from diagnostics.rules._words import number, tex
from diagnostics.run import Run


def by_first_updates(
    kind: str,
    run: Run,
    *,
    times: float = 3.0,  # the matrices' size: they are hardly those of the initialization any more
    fell: float = 30.0,  # by which the gradient fell: it was the start's, or a wall's, and led away from both
    learned: float = 0.1,  # of the loss: what is gone when training has begun
    spent: float = 0.05,  # of the run before that, and as long again as the first updates
    first: int = 10,  # updates, or three memories of the momentum
) -> Finding | None:
    """Steps of adaptive optimizers have the rate's own length, however long the gradient; and the one weight matrix of
    a linear model may have to be as large."""
    history, mu = signals.loss(run), optimizer.momentum(run)
    within = max(first, 3 / (1 - mu)) if mu < 1 else np.inf
    steps, norms = signals.whole_norms(run)
    early = steps < history.steps[0] + within
    if optimizer.adaptive(run) or run.meta["linear_model"] or not early.any() or early.all():
        return None
    began, grown, lasting = _sizes(run, history.steps[0] + within)
    steep, after = float(np.fmax.reduce(norms[early], initial=0.0)), signals.median(norms[~early][: int(within)])
    if not lasting >= times * began > 0 or not steep >= fell * after > 0:
        return None
    untrained = signals.untrained(run)
    gone = np.flatnonzero(recent_median(history.values, 25) <= untrained - learned * abs(untrained))
    count = int(gone[0]) if len(gone) else history.count
    if count < max(2 * within, spent * history.count):
        return None
    at = int(history.steps[min(count, history.count - 1)])
    return Finding(
        kind,
        "learning-rate",
        "warning",
        history.first_step,
        at if len(gone) else None,
        (),
        f"The first updates left weight matrices {number(grown / began)} times as large as they were: the gradient was "
        f"up to {number(steep)} there and {number(after)} afterwards, and until step {at} the loss hardly fell below "
        f"{number(untrained)}, what answers cost that say nothing.",
        {
            "size of the weight matrices over that at the start": grown / began,
            "largest gradient norm": steep,
            "gradient norm afterwards": after,
            "loss at start": history.start,
            "loss at end": history.end,
        },
        (
            f"clip the gradient's norm: torch.nn.utils.clip_grad_norm_(model.parameters(), {max(2 * after, 1.0):.3g})",
            "or warm the learning rate up over the first hundred updates, or lower it",
            "where the loss is a sum over the batch, take its mean: a sum multiplies the rate by the batch size",
        ),
        (
            Chart("line", "scalars", ("weight_norm",), "Norm of all weights", log=True),
            GRADIENT_NORM,
            LOG_LOSS,
        ),
        rf"\|\mathbf{{w}}\|: {tex(began)} \to {tex(grown)}",
    )


def at_once_and_for_good(run: Run, history: signals.Loss, *, updates: int = 3) -> bool:
    """Whether nothing was a number any more after the first updates, which moved the weights by half of their size, as
    far as their gradient took them."""
    known = np.isfinite(history.values)
    ended = 0 < known.sum() <= updates and not known[known.sum() :].any()
    return ended and by_layer.thrown_at_once(run) and not optimizer.adaptive(run)


def _sizes(run: Run, until: float, *, least: float = 0.05) -> tuple[float, float, float]:
    """Norm of all weight matrices before the first update, at the last record before a step, and the smaller of that
    and the last one of all. NaN where nothing is known of the start: it was far below what the first update made of it.

    A bias goes where the mean target is, however far.
    """
    steps, names, weights = run.matrix("layers", "weight_norm")
    _, _, updates = run.matrix("layers", "update_norm")
    wanted = by_layer.matrices(run)
    matrices = [at for at, name in enumerate(names) if str(name) in wanted]
    if not matrices or len(steps) < 2 or updates.shape != weights.shape:
        return np.nan, np.nan, np.nan
    squares = np.square(weights[:, matrices]).sum(1)
    began = squares[0] - np.square(updates[0, matrices]).sum()  # a step across the weights, as most are
    early = np.sqrt(squares[steps < until])
    if not began > least**2 * squares[0] or not len(early):
        return np.nan, np.nan, np.nan
    return float(np.sqrt(began)), float(early[-1]), float(min(early[-1], np.sqrt(squares[-1])))
