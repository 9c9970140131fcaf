"""A parameter group whose learning rate is so far below another's that its layers stay as they were initialized.

Source: lecture, "Learning Rate" ("α too small: slow progress"), of a part of the weights.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._unmoved import moves
from diagnostics.rules._words import names_of, number
from diagnostics.run import Run


def slow_group(
    kind: str,
    run: Run,
    *,
    apart: float = 1000.0,  # rates on purpose are 10 to 100 apart, of a pretrained body and a new head
    unmoved: float = 0.03,  # of their size, by a thousand updates: where the rate fits, they move by several times it
    most: float = 0.5,  # of the weights
    left: float = 0.3,  # of the starting loss: with less, what was done without them was enough
    sure: float = 3.0,  # standard errors of the fall in the last half: a run at its floor needs nothing
) -> Iterator[Finding]:
    rates = [float(group.get("lr") or 0) for group in run.meta.get("hyperparameters") or []]
    history = signals.loss(run)
    if len(rates) < 2 or not 0 < apart * min(rates) <= max(rates) or history.count < 20:
        return
    if not history.end > left * history.start or signals.trend(history.values[-(history.count // 2) :]).z <= sure:
        return
    moved = {name: move for name, move in moves(run, updates_at_least=1000).items() if move > 0}
    slow = tuple(name for name, move in moved.items() if move <= unmoved)
    fast = tuple(name for name in moved if name not in slow)
    if not slow or not fast or _weights(run, slow) < most * _weights(run, slow + fast):
        return
    pulls = [_gradient(run, names) for names in (slow, fast)]
    if not pulls[0] >= pulls[1]:  # they are as they should be
        return
    worst = max(moved[name] for name in slow)
    yield Finding(
        kind=kind,
        cause="one-group",
        severity="warning",
        first_step=int(history.steps[0]),
        last_step=None,
        layers=slow,
        summary=(
            f"{names_of(slow)} hardly {'moves' if len(slow) == 1 else 'move'}: a thousand updates change no layer of "
            f"them by more than {number(100 * worst)} % of its size, since the learning rate of their group, "
            f"{number(min(rates))}, is {number(max(rates) / min(rates))} times smaller than that of another. Yet most "
            f"of the gradient is theirs, and the loss came from {number(history.start)} to {number(history.end)} only."
        ),
        evidence={
            "smallest rate": min(rates),
            "largest rate": max(rates),
            "most moved, over its size": worst,
            "gradient norm": pulls[0],
            "gradient norm of the others": pulls[1],
        },
        remedies=(
            f"raise the rate of their parameter group to that of the other, {number(max(rates))}, or a tenth of it "
            "where they are pretrained",
            "print([group['lr'] for group in optimizer.param_groups]): is a factor applied twice?",
            "or, if they are to stay as they are, freeze them: requires_grad_(False)",
        ),
        charts=(
            Chart("line", "layers", ("update_norm",), "Length of the update of each tensor", log=True),
            Chart("line", "scalars", ("loss",), "Loss"),
        ),
    )


def _weights(run: Run, names: tuple[str, ...]) -> int:
    return sum(each["parameters"] for each in run.meta.get("layers") or [] if each["name"] in names)


def _gradient(run: Run, chosen: tuple[str, ...]) -> float:
    _, names, norms = by_layer.matrix(run, "layers", "grad_norm")
    own = norms[:, [at for at, name in enumerate(names) if name in chosen]]
    return signals.median(np.sqrt(np.nansum(own**2, axis=1)))
