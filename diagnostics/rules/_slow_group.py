"""A parameter group whose learning rate is so far below another's that its layers stay as they were initialized.

Source: lecture, "Learning Rate" ("α too small: slow progress"), of a part of the weights.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._unmoved import as_initialized, moves
from diagnostics.rules._words import names_of, number
from diagnostics.run import Run


def slow_group(
    kind: str,
    run: Run,
    *,
    apart: float = 1000.0,  # rates on purpose are 10 to 100 apart, of a pretrained body and a new head
    unmoved: float = 0.03,  # of their size, by a thousand updates: where the rate fits, they move by several times it
    random: tuple[float, float] = (100.0, 0.2),  # of both, of a body that is as initialized and has no such reason
    most: float = 0.5,  # of the weights
    left: float = 0.3,  # of the starting loss: with less, what was done without them was enough
    half: float = 0.5,  # of it: with less, a head on features that stay may be all that was meant
    sure: float = 3.0,  # standard errors of the fall in the last half: a run at its floor needs nothing
) -> Iterator[Finding]:
    history = signals.loss(run)
    rates = {at: float(group.get("lr") or 0) for at, group in enumerate(run.meta["hyperparameters"])}
    groups = {name: each.get("group") for name, each in by_layer.described(run).items()}
    if len(rates) < 2 or history.count < 20 or not history.end > left * history.start:
        return
    moved = moves(run, updates_at_least=1000)
    # Of a group that was added later the first rate is not known, nor is any of a run that an earlier version wrote.
    own = {name: rates[group] for name in moved if (group := groups[name]) is not None and group in rates}
    fast_rate, slow_rate = max(own.values(), default=0.0), min(own.values(), default=0.0)
    fast, slow = (tuple(name for name in own if own[name] == rate) for rate in (fast_rate, slow_rate))
    anew = bool(slow) and as_initialized(run, slow)
    if anew:
        apart, unmoved = random
    if not 0 < apart * slow_rate <= fast_rate or not all(0 < moved[name] <= unmoved for name in slow):
        return
    pulls = [_gradient(run, names) for names in (slow, fast)]
    mostly = _weights(run, slow) >= most * _weights(run, tuple(own)) and pulls[0] >= pulls[1]
    if not mostly or signals.trend(history.values[-(history.count // 2) :]).z <= sure:
        return
    worst = max(moved[name] for name in slow)
    yield Finding(
        kind=kind,
        cause="one-group",
        severity="warning" if history.end > half * history.start else "info",
        first_step=history.first_step,
        last_step=None,
        layers=slow,
        summary=(
            f"{names_of(slow)} hardly {'moves' if len(slow) == 1 else 'move'}: {number(max(1000, history.count))} "
            f"updates change none of them by more than {number(100 * worst)} % of its size, since the rate of their "
            f"group, {number(slow_rate)}, is {number(fast_rate / slow_rate)} times smaller than that of another. Yet "
            f"most of the gradient is theirs{', and they are as random as they began' if anew else ''}; the loss came "
            f"from {number(history.start)} to {number(history.end)}."
        ),
        evidence={
            "smallest rate": slow_rate,
            "largest rate": fast_rate,
            "most moved, over its size": worst,
            "gradient norm": pulls[0],
            "gradient norm of the others": pulls[1],
        },
        remedies=(
            f"raise the rate of their parameter group to that of the other, {number(fast_rate)}"
            + ("" if anew else f", or, where they are pretrained, to {number(fast_rate / 10)}"),
            "print([group['lr'] for group in optimizer.param_groups]): is a factor applied twice?",
            "or, if they are to stay as they are, freeze them: requires_grad_(False)",
        ),
        charts=(
            Chart("line", "layers", ("update_norm",), "Length of the update of each tensor", log=True),
            LOSS,
        ),
    )


def _weights(run: Run, names: tuple[str, ...]) -> int:
    layers = by_layer.described(run)
    return sum(layers[name]["parameters"] for name in names)


def _gradient(run: Run, chosen: tuple[str, ...]) -> float:
    _, names, norms = by_layer.matrix(run, "layers", "grad_norm")
    own = norms[:, [at for at, name in enumerate(names) if name in chosen]]
    return signals.median(np.sqrt(np.nansum(own**2, axis=1)))
