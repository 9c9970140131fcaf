"""A number that the loss hangs on and that is far too large for the steps that an adaptive optimizer makes.

Source: lecture, "RMSprop and Adam": each coordinate moves by about the learning rate, whatever its size. A resistance
of 0.02 and a capacitance of 10,000 under one rate are a ravine of the parametrization.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run


def out_of_step(
    kind: str,
    run: Run,
    *,
    measured: int = 5,  # records: fewer do not tell a direction from noise
    much: float = 0.3,  # of the loss, for a number that moves by its own size
    moved: float = 0.05,  # of its size, by all updates of one learning rate each, were they all one way
    sure: float = 3.0,  # standard errors that what it is worth is away from 0
    steady: float = 0.75,  # of the records with one sign: at a floor it changes
) -> Iterator[Finding]:
    """Only once what else there is to learn has been learned: then the number is what holds the loss up."""
    history = signals.loss(run)
    since = int(history.steps[history.count // 3])
    if not optimizer.adaptive(run) or run.table("layers", ["step"]).empty:
        return
    steps, names, worths = by_layer.matrix(run, "layers", "elasticity")
    _, _, places = by_layer.matrix(run, "layers", "elastic_at")
    _, _, sizes = by_layer.matrix(run, "layers", "elastic_size")
    fell = signals.level(history.after(since)[: history.window]) - history.end
    for at, name in enumerate(names):
        place = signals.median(places[steps >= since, at])
        chosen = (steps >= since) & (places[:, at] == place)
        worth = worths[chosen, at]
        if len(worth) < measured or max((worth > 0).mean(), (worth < 0).mean()) < steady:
            continue
        offer, error = abs(float(worth.mean())), float(worth.std(ddof=1)) / len(worth) ** 0.5
        motion = _way(run, name) / signals.median(sizes[chosen, at])
        if offer >= max(much * abs(history.end), fell, sure * error) and motion <= moved:
            called = name if by_layer.described(run).get(name, {}).get("parameters") == 1 else f"{name}[{int(place)}]"
            yield _finding(kind, run, name, called, offer, motion)
            return


def _way(run: Run, name: str) -> float:
    """How far all updates could have moved a number: the sum of the rates of its group, of which the first one's are
    recorded."""
    rates = [float(group.get("lr") or np.nan) for group in run.meta["hyperparameters"]]
    group = by_layer.described(run).get(name, {}).get("group") or 0
    times = rates[group] / rates[0] if group < len(rates) else 1.0
    return float(optimizer.learning_rates(run)[1].mean()) * times * signals.total(run)


def _finding(kind: str, run: Run, name: str, called: str, offer: float, motion: float) -> Finding:
    history = signals.loss(run)
    return Finding(
        kind,
        "weight-scale",
        "warning",
        history.first_step,
        None,
        (name,),
        f"{called} hardly moves: all updates together, were they all one way, move it by {number(100 * motion)} % of "
        "its size, since each moves every number by about the learning rate. Yet a change by its own size would take "
        f"about {number(offer)} off the loss, which stands at {number(history.end)}.",
        {"worth of its size": offer, "moved at most, over its size": motion, "loss at end": history.end},
        (
            f"count {called} in a unit in which it is near 1: train its logarithm, or the number over its usual size",
            f"or give {name} a parameter group with a rate of its own, in proportion to its size",
        ),
        (
            Chart(
                "line", "layers", ("elasticity",), "What moving by its size would change the loss by", layers=(name,)
            ),
            LOG_LOSS,
        ),
        rf"\sum_k \frac{{|u_k|}}{{|w|}} = {tex(motion)}, \qquad "
        rf"|w|\left|\frac{{\partial\mathcal{{J}}}}{{\partial w}}\right| = {tex(offer)}",
    )
