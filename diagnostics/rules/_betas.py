"""Adam whose first average remembers for longer than its second: its steps have no bound.

Source: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (2018), which asks for beta1 < sqrt(beta2).
"""

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run

_OPTIMIZERS = {"Adam", "AdamW", "NAdam", "RAdam"}


def swapped_betas(
    kind: str,
    run: Run,
    *,
    longest: float = 10.0,  # times the rate, for an average weight: of the usual betas each moves by less than 8
) -> Finding | None:
    """By the updates: where every weight goes on getting gradients, both averages may do."""
    betas = _swapped(run)
    table = run.table("scalars", ["step", "lr", "update_norm"]).dropna()
    table = table.loc[table["lr"] > 0]
    if betas is None or table.empty:
        return None
    moved = signals.array(table, "update_norm") / signals.array(table, "lr") / max(run.meta["parameters"], 1) ** 0.5
    far = np.flatnonzero(moved > longest)
    if not len(far):
        return None
    first, second = betas
    history = signals.loss(run)
    ended = f"ended at {number(history.end)}" if np.isfinite(history.end) else "became non-finite"
    return Finding(
        kind,
        "betas",
        "critical",
        int(table["step"].iloc[far[0]]),
        None,
        (),
        f"Adam's betas ({number(first)}, {number(second)}) leave its steps without a bound: the average of the "
        "gradients remembers for longer than that of their squares, which each step divides by. Where a weight's "
        f"gradient fades, its step grows: at step {int(table['step'].iloc[moved.argmax()])} an average weight moved by "
        f"{number(moved.max())} times the learning rate. The loss started at {number(history.start)} and {ended}.",
        {"beta1": first, "beta2": second, "largest update over the rate": float(moved.max())},
        ("the usual betas are (0.9, 0.999), in this order: keep beta1 below the root of beta2",),
        (
            Chart("line", "scalars", ("update_norm",), "Norm of the update", log=True),
            LOG_LOSS,
        ),
        r"\frac{m_{t+k}}{\sqrt{v_{t+k}}} = \left(\frac{\beta_1}{\sqrt{\beta_2}}\right)^k \frac{m_t}{\sqrt{v_t}}"
        r" \quad\text{once gradients are } 0",
    )


def _swapped(run: Run) -> tuple[float, float] | None:
    """Of a parameter group; None where all keep to the bound, or the optimizer has another rule."""
    if run.meta["optimizer"] not in _OPTIMIZERS:
        return None
    for group in run.meta["hyperparameters"]:
        betas = group.get("betas") or ()
        if len(betas) == 2 and all(isinstance(each, int | float) for each in betas) and betas[0] ** 2 > betas[1]:
            return float(betas[0]), float(betas[1])
    return None
