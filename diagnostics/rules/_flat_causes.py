"""Why a loss that has learned nothing stands still: probabilities at their ends, inputs next to nothing, targets out of
sight.

Source: lecture, "Plateaux".
"""

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS_AND_GRADIENT
from diagnostics.rules._explained import Explained
from diagnostics.rules._far_targets import NEARER, far_targets, how_far
from diagnostics.rules._finding import Finding
from diagnostics.rules._raw_inputs import first_length, normalizes
from diagnostics.rules._stretches import Flat
from diagnostics.rules._words import number, tex
from diagnostics.run import Run


def saturated_softmax(kind: str, run: Run, stretch: Flat, *, certain: float = 0.01) -> Finding | None:
    """A loss of the probabilities themselves, as a squared error or the chance of a mistake, where they are sure: its
    gradient is multiplied by y (1 - y), as with a logistic output. With logarithms it would not be."""
    calls = signals.loss_calls(run)
    if "softmax" not in calls or any("log" in each or "entropy" in each for each in calls):
        return None
    outputs = [name for name, (function, _) in by_layer.activations(run).items() if function == "softmax"]
    steps, names, entropies = run.matrix("units", "entropy")
    named = [at for at, name in enumerate(names) if str(name) in outputs]
    if not named:
        return None
    entropy = signals.median(entropies[stretch.holds(steps), named[-1]])
    if not entropy <= certain:  # of the largest: the derivatives are as small a part of theirs
        return None
    return stretch.finding(
        kind,
        "logistic-least-squares",
        (),
        f"The softmax is sure of wrong answers: their entropy is {number(100 * entropy)} % of the largest, and a loss "
        "of the probabilities multiplies every error by their derivative, which is nearly 0 there; it "
        f"{stretch.stood}.",
        {"entropy over largest": entropy, "loss": stretch.level, "share of the run": stretch.share},
        (
            "use F.cross_entropy on the logits: its gradient is y - t, whatever the saturation",
            "start with small logits: the default initialization of the last layer, its bias at 0",
        ),
        LOSS_AND_GRADIENT,
        r"\frac{\partial y_c}{\partial z_c} = y_c\,(1 - y_c) \to 0 \text{ where } y_c \to 0 \text{ or } 1",
    )


def tiny_inputs(kind: str, run: Run, stretch: Flat, *, least: float = 0.05) -> Finding | None:
    """Inputs far shorter than the constant 1 that feeds a bias, and no layer that would scale what follows: weights
    move an output by the square of that length, times what the bias moves it by; 1 / 400 as much."""
    length, _ = first_length(run)
    if not 0 < length <= least or normalizes(run) or not _has_biases(run):
        return None
    return stretch.finding(
        kind,
        "input-scale",
        (),
        f"The inputs are so small that the network answers to its biases alone: an input is {number(length)} long "
        f"where a bias is fed a 1, and the loss {stretch.stood}.",
        {"length of an input": length, "loss": stretch.level, "share of the run": stretch.share},
        (
            "standardize the inputs: x = (x - mean) / std",
            "look for a scaling that is applied twice, as a division by 255 in the data set and in the loop",
        ),
        LOSS_AND_GRADIENT,
        rf"\bar w_{{ij}} = \bar z_i\,x_j, \quad \bar b_i = \bar z_i, \quad \|\mathbf{{x}}\| \approx {tex(length)}",
    )


def crowded_inputs(
    kind: str, run: Run, stretch: Flat, found: Explained, *, most: float = 0.5, features: float = 0.5
) -> Finding | None:
    """Inputs most of whose features have half of their values in a fiftieth of their deviation, which one value far
    away makes up; where less than half is surely learned."""
    told = run.meta["crowded"]
    if len(told) != 3 or told[1] < features * told[0] or not found.share + 3 * found.error < most:
        return None
    vary, crowded, width = int(told[0]), int(told[1]), float(told[2])
    return stretch.finding(
        kind,
        "crowded-inputs",
        (),
        f"Most values of {crowded} of {vary} input features can hardly be told apart: their middle half lies within "
        f"{number(100 * width)} % of the feature's standard deviation, which one value far away makes up. The loss "
        f"{stretch.stood}.",
        {"quartiles apart, in deviations": width, "crowded features": float(crowded), "loss": stretch.level},
        (
            "turn codes for what is missing, as -9999, into NaN before mean and deviation are taken, and fill the gaps "
            "afterwards: x = torch.nan_to_num((x - mean) / std)",
            "where it is no code, give it a column of its own that says where it is",
        ),
        LOSS_AND_GRADIENT,
        rf"(q_{{3/4}} - q_{{1/4}}) / \sigma = {tex(width)}, \quad \text{{of normal numbers }} 1.35",
    )


def _has_biases(run: Run) -> bool:
    """Vectors as long as a side of some matrix; a temperature or a rate beside points is none."""
    shapes = [tuple(each["shape"]) for each in run.meta["layers"]]
    sides = {side for shape in shapes if len(shape) > 1 for side in shape}
    return any(len(shape) == 1 and shape[0] in sides for shape in shapes)


def distant_targets(kind: str, run: Run, stretch: Flat, *, same: float = 0.5) -> Finding | None:
    """Targets far from 0, and a gradient that points one way all the time."""
    targets, history = far_targets(run), signals.loss(run)
    near_start = stretch.level >= same * history.start
    if targets is None or not near_start or not signal.surely(run, stretch.first_step) > 0:
        return None
    (low, high), rate = targets, optimizer.highest_rate(run, stretch.last_step)
    return stretch.finding(
        kind,
        "target-scale",
        (),
        f"{how_far(run, targets)}: the loss {stretch.stood}.",
        {"smallest target": low, "target of largest size": max(low, high, key=abs), "loss": stretch.level},
        NEARER,
        LOSS_AND_GRADIENT,
        rf"|\Delta w| \approx \alpha = {tex(rate)} \text{{ an update, whatever }} y - t",
    )
