"""One gradient so long that an adaptive optimizer's running mean of squares holds hardly anything else for long.

Source: lecture, "RMSprop and Adam": each update is divided by the root of that mean.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM, LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run

_REMEMBER = {"Adam", "AdamW", "NAdam", "RAdam", "RMSprop"}


def one_gradient(
    kind: str,
    run: Run,
    *,
    alone: float = 100.0,  # times all gradients around it: orders of magnitude, as a wrong example's
    around: int = 50,
    shortens: float = 10.0,  # times: far more than a schedule's step
    part: float = 0.2,  # of the run that is made with such updates
    measured: int = 3,  # updates before it, and after it
) -> Iterator[Finding]:
    decay = _decay(run)
    table = run.table("scalars", ["step", "lr", "grad_norm", "update_norm"])
    table = table.loc[np.isfinite(signals.array(table, "grad_norm")) & (signals.array(table, "lr") > 0)]
    norms = signals.array(table, "grad_norm")
    if decay is None or len(norms) < 2 * around + 1:
        return
    at = int(norms.argmax())
    before, after = norms[max(0, at - around) : at], norms[at + 1 : at + 1 + around]
    if min(len(before), len(after)) < around or not norms[at] > alone * max(before.max(), after.max()):
        return
    usual = float(np.median(before))
    times = _root_of_mean(norms, decay) / _root_of_mean(np.where(np.arange(len(norms)) == at, usual, norms), decay)
    shortened = (times >= shortens) & (np.arange(len(norms)) > at)
    lengths = signals.array(table, "update_norm") / signals.array(table, "lr")
    was, became = (lengths[chosen & np.isfinite(lengths)] for chosen in (np.arange(len(norms)) < at, shortened))
    if shortened.mean() < part or min(len(was), len(became)) < measured:
        return
    by = float(np.median(was) / np.median(became[-len(became) // 2 :]))  # once the momentum is over it
    if not by >= shortens / 2:  # weights that had no part in it are not held up
        return
    step, share = int(table["step"].iloc[at]), float(shortened.mean())
    yield Finding(
        kind,
        "one-gradient",
        "warning",
        step,
        None,
        (),
        (
            f"At step {step} one gradient was {number(norms[at] / usual)} times as long as usual. The optimizer "
            "divides by the root of its mean of squares, which remembers it: the updates have become "
            f"{number(by)} times shorter, for {number(100 * share)} % of the run."
        ),
        {"gradient over the usual": float(norms[at] / usual), "updates shorter by": by, "share of the run": share},
        (
            "look at the examples of that batch: a code for a missing value, another unit, a broken file",
            f"or clip what is longer than usual: torch.nn.utils.clip_grad_norm_(model.parameters(), {2 * usual:.3g})",
        ),
        (
            GRADIENT_NORM,
            Chart("line", "scalars", ("update_norm",), "Length of an update", log=True),
            LOG_LOSS,
        ),
        r"v_k = \beta_2 v_{k-1} + (1 - \beta_2)\, g_k^2, \qquad \Delta\theta = -\alpha\, m_k / \sqrt{v_k}",
    )


def _decay(run: Run) -> float | None:
    """Of the running mean of squares, of the group that remembers longest."""
    groups = run.meta["hyperparameters"]
    if run.meta["optimizer"] not in _REMEMBER:
        return None
    found = max((float(group.get("alpha", (group.get("betas") or [0, 0])[-1])) for group in groups), default=1.0)
    return found if 0 <= found < 1 else None


def _root_of_mean(norms: np.ndarray, decay: float) -> np.ndarray:
    return np.sqrt(pd.Series(norms**2).ewm(alpha=1 - decay).mean().to_numpy())  # with its bias corrected
