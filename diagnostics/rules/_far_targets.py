"""Targets far from 0, where initializations put the answers, and an optimizer whose steps do not grow with the error.

Source: Adam's updates are bounded by about the rate (Kingma & Ba 2015, 2.1).
"""

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._words import number
from diagnostics.run import Run

COMPARISONS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
NEARER = (
    "standardize the targets for training, t = (t - mean) / std, and scale predictions back",
    "or start the last layer's bias at the mean target",
)


def far_targets(run: Run) -> tuple[float, float] | None:
    """The smallest and the largest, where the loss is an error against them."""
    last = signals.loss_calls(run)[-1]
    return _far(run) if last in COMPARISONS and optimizer.adaptive(run) else None


def _far(run: Run, *, far: float = 100.0) -> tuple[float, float] | None:
    """First answers are of size 1, so `far` takes a hundred times the way that anything else does."""
    targets = [float(each) for each in run.meta["targets"]]
    return (targets[0], targets[1]) if len(targets) == 2 and max(map(abs, targets)) >= far else None


def scale_targets(run: Run) -> tuple[str, ...]:
    """Of targets of any part of the loss, beside a step that threw units to their ends: the gradient of a squared error
    is as large as the targets are."""
    targets = _far(run)
    if targets is None:
        return ()
    low, high = map(number, targets)
    return (
        f"scale the targets for training: a part of the loss compares outputs with numbers from {low} to {high}, and "
        "to come there drives what lies before to its ends",
    )


def how_far(run: Run, targets: tuple[float, float]) -> str:
    low, high = targets
    rate = optimizer.highest_rate(run, signals.loss(run).last_step)
    return (
        f"The targets lie between {number(low)} and {number(high)}, the network's first answers near 0, and an update "
        f"of {run.meta['optimizer']} moves no weight by much more than the learning rate, {number(rate)}, however "
        "far there is to go"
    )
