"""L-BFGS that finds no lower loss along its direction any more, although the gradient says that there is one."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found
from diagnostics.rules._words import number
from diagnostics.run import Run


def in_closures(run: Run) -> bool:
    """Whether gradients are computed in closures that the optimizer calls, several times a step."""
    return "lbfgs" in str(run.meta.get("optimizer")).lower()


def optimizer_stopped(
    run: Run,
    *,
    part: float = 0.5,  # of the run
    measured: int = 3,
    converged: float = 0.01,  # of the first gradient and of the first loss: single precision stops it below
) -> Iterator[Finding]:
    if not in_closures(run):
        return  # another optimizer whose update is 0 lost it to rounding
    table = run.table("scalars", ["step", "lr", "grad_norm", "update_norm"]).dropna()
    stands = ((table["update_norm"] == 0) & (table["lr"] > 0) & (table["grad_norm"] > 0)).to_numpy()
    moved = np.flatnonzero(~stands)
    rest = table.iloc[moved[-1] + 1 :] if len(moved) else table
    if len(rest) < measured or len(rest) == len(table):
        return
    since, history = int(rest["step"].iloc[0]), signals.loss(run)
    left = signals.median(rest["grad_norm"].to_numpy()) / float(table["grad_norm"].iloc[0])
    long = history.steps[-1] - since >= part * (history.steps[-1] - history.steps[0])
    if not long or not left > converged or not abs(history.end) > converged * abs(history.start):
        return
    yield found(
        "optimizer-stopped",
        since,
        (),
        (
            f"The optimizer has moved no weight since step {since}, although the gradient is {number(100 * left)} % as "
            "long as at the start: its line search finds no lower loss where the gradient says that there is one, so "
            "this is not the gradient of the loss that the closure returns."
        ),
        {"gradient over the first": left, "loss at end": history.end},
        (
            "return from the closure the loss whose backward() it calls, with all its terms",
            "let the closure return the same loss each time: one batch, one dropout mask",
        ),
        chart=Chart("line", "scalars", ("update_norm",), "Length of an update"),
    )
