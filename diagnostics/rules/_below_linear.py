"""A network that does worse than a linear model of the same inputs: the targets follow from them, so that neither noise
nor mislabelled data holds the loss up.

Source: the baselines that are to come first in any project (Karpathy 2019, "A Recipe for Training Neural Networks";
Zinkevich, "Rules of Machine Learning"); fitted as the run goes, of examples that the fit has not seen.
"""

from typing import NamedTuple

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import LITTLE
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

BELOW_LINEAR = "below-linear"
LEAST = 5  # measured updates: fewer have no standard error worth the name
FEWEST = 3  # of them since a step that the answer is of
_LOSSES = ("loss", "linear_loss", "constant_loss")
_CHART = Chart(
    "line",
    "scalars",
    _LOSSES,
    "Loss, that of a linear model of the same inputs, and that of the same answer to every input",
    log=True,
)


class Rival(NamedTuple):
    """Shares of the loss of a constant answer, R^2 for a squared error, over the later half of the same batches."""

    network: float
    linear: float
    error: float  # standard error of their difference
    gained: float  # by the network, an update, since the half before
    latest: float  # of the network, by its last three
    losses: tuple[float, ...]  # of the network, the linear model, and a constant answer
    first_step: int

    @property
    def surely_ahead(self) -> float:
        """By how much the linear model is, three standard errors down."""
        return self.linear - self.network - 3 * self.error

    @property
    def learns(self) -> bool:
        """The linear model, surely."""
        return self.linear - 3 * self.error > LITTLE

    @property
    def learns_nothing(self) -> bool:
        """The linear model, surely."""
        return self.linear + 3 * self.error < LITTLE


def rival(run: Run, since: int) -> Rival | None:
    """Since a step, and over so many of the last measured updates at least; `None` where there are too few."""
    table = run.table("scalars", ["step", *_LOSSES]).dropna()
    steps, losses = signals.array(table, "step"), np.stack([signals.array(table, name) for name in _LOSSES])
    inside = int((steps >= since).sum())
    steps, losses = (each[..., -max(inside, 2 * LEAST) :] for each in (steps, losses))
    if inside < FEWEST or len(steps) < 2 * LEAST or not (losses[2] > 0).all():
        return None
    half = len(steps) // 2
    updates = float(steps[half:].mean() - steps[:half].mean())
    network, linear = 1 - losses[:2] / losses[2]
    ahead = linear[half:] - network[half:]
    return Rival(
        network=float(network[half:].mean()),
        linear=float(linear[half:].mean()),
        error=float(ahead.std(ddof=1) / len(ahead) ** 0.5),
        gained=float(network[half:].mean() - network[:half].mean()) / updates,
        latest=float(np.median(network[-3:])),
        losses=tuple(losses[:, half:].mean(1).tolist()),
        first_step=int(steps[half]),
    )


def below_linear(
    kind: str,
    run: Run,
    *,
    within: float = 0.5,  # of the run
    updates: int = 100,  # fewer do not tell a slow start from a loss that stays
    worth: float = 0.1,  # of the loss of a constant answer: less to be had is no reason for an alarm
    behind: float = 0.5,  # of what a linear model explains: no noise that is meant costs so much of it
) -> Finding | None:
    """An alarm without a mechanism, which gives way to any that has one; none while the network is catching up."""
    history = signals.loss(run)
    last = history.last_step
    half = int(last - within * (last - int(history.steps[0])))
    found = rival(run, half)
    if found is None or last - half < updates or found.linear - 3 * found.error < worth:
        return None
    if not behind * found.linear - max(found.network, found.latest) > 3 * found.error:
        return None
    catching_up = found.gained * history.count >= found.linear - found.network  # in as many updates again
    loss, linear, constant = found.losses
    return Finding(
        kind,
        BELOW_LINEAR,
        "info" if catching_up else "warning",
        found.first_step,
        None,
        (),
        f"A linear model of the same inputs does better: from step {found.first_step} to {last} the loss is "
        f"{number(loss)}, where one that was fitted to other examples on the way would have {number(linear)}, and the "
        f"same answer to every input {number(constant)}. The targets follow from the inputs, and the network does not "
        "come to it.",
        {
            "loss": loss,
            "loss of a linear model": linear,
            "loss of a constant answer": constant,
            "R squared": found.network,
            "R squared of a linear model": found.linear,
            "standard error of their difference": found.error,
        },
        (
            "look for where the inputs are lost on the way: a dimension that is averaged away, a bottleneck, a "
            "normalization over what should tell examples apart, outputs of another order than the targets",
            "train on ten examples alone: where the loss does not reach 0, it is the network or the loop; where it "
            "does, the rate, the batches or what regularizes: try a tenth and ten times the rate, larger batches, no "
            "dropout and no weight decay",
        ),
        (_CHART,),
        r"R^2 = 1 - \frac{\mathcal{L}}{\mathcal{L}_\text{constant}} = "
        rf"{tex(found.network)}, \quad R^2_\text{{linear}} = {tex(found.linear)}",
    )


def said_of_linear(found: Rival | None) -> str:
    """Beside a network that learned nothing: whether there is something to learn."""
    if found is not None and found.learns:
        return (
            f" A linear model of the same inputs would take {number(100 * found.linear)} % off that: the targets "
            "follow from the inputs."
        )
    if found is not None and found.learns_nothing:
        return " A linear model of the same inputs learns nothing, so look at the targets first."
    return ""


def at_linear(found: Rival | None) -> str:
    """Beside a loss that is surely higher."""
    if found is None or not found.surely_ahead > 0:
        return ""
    return f" A linear model of the same inputs would be at {number(found.losses[1])}."


def is_behind_linear(run: Run, since: int, *, seen: float = 0.02) -> bool:
    """Surely, and by as much as shows on a plot."""
    found = rival(run, since)
    return found is not None and found.surely_ahead > seen
