"""Why a loss that has learned nothing stands still: probabilities at their ends, weights that decay has taken away,
inputs next to nothing, targets out of sight.

Source: lecture, "Plateaux".
"""

from dataclasses import replace

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS, LOSS_AND_GRADIENT
from diagnostics.rules._explained import Explained
from diagnostics.rules._far_targets import NEARER, far_targets, how_far
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._raw_inputs import first_length, normalizes
from diagnostics.rules._stretches import Flat
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

_COUPLED = {"SGD", "Adam", "NAdam", "RAdam", "RMSprop", "Adagrad"}  # of torch.optim: the decay is added to the gradient


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


def decayed(
    kind: str,
    run: Run,
    stretch: Flat,
    *,
    left: float = 0.2,
    gone: float = 0.01,
    unseen: float = 0.003,  # the root of the 1e-5 that norms add to a variance: they do not make up for less
) -> Finding | None:
    """Weights far smaller than initialization made them, to keep the size of signals: a fifth of all, or next to
    nothing of one layer that no norm makes up for, or of most."""
    decay = _largest_decay(run)
    steps, norms = signals.column(run, "weight_norm")
    late = norms[stretch.holds(steps)]
    if not decay > 0 or not len(late) or not norms[0] > 0:
        return None
    share, where = float(late[-1] / norms[0]), "the weights"
    chart = Chart("line", "scalars", ("weight_norm",), "Norm of all weights", log=True)
    if share > left:
        left_of = _left_of_matrices(run, stretch.last_step)
        chart = Chart("heatmap", "layers", ("weight_norm",), "Norm of each tensor", log=True)
        if not left_of:
            return None
        name = min(left_of, key=left_of.__getitem__)
        share, where = left_of[name], f"the weights of {name.removesuffix('.weight')}"
        if normalizes(run):
            gone, share, where = unseen, signals.median(np.array([*left_of.values()])), "half of all matrices"
        if not share <= gone:
            return None
    return _by_decay(
        kind,
        run,
        stretch,
        decay,
        share,
        f"A weight decay of {number(decay)} has brought {where} to {number(100 * share)} % of their initial size: "
        f"the layers pass on next to nothing, and the loss {stretch.stood}.",
        chart,
    )


def held_by_decay(
    kind: str,
    run: Run,
    stretch: Flat,
    heard: bool,
    *,
    half: float = 0.5,
    common: float = 0.1,  # of the squared gradient is the same in all batches: the loss has a way down
) -> Finding | None:
    """A decay that is added to the gradient and holds the loss up: half of the matrices have lost `half` of their size,
    the loss does not come down though its gradient surely points somewhere, and the decay is at least `half` as long as
    that part of it: where they rest it is as long. Where next to nothing is to be learned there is no such part. Where
    inputs are `heard`, so much of it may be meant."""
    decay, left_of = _largest_decay(run), _left_of_matrices(run, stretch.last_step)
    left = signals.median(np.array([*left_of.values()]))
    if run.meta["optimizer"] not in _COUPLED or _is_decoupled(run) or stretch.escaped or not decay or not left <= half:
        return None
    steps, names, sizes = by_layer.matrix(run, "layers", "weight_norm")
    _, _, gradients = by_layer.matrix(run, "layers", "grad_norm")
    at = _of_matrices(run, names)
    inside, agreed = stretch.holds(steps), signal.surely_at_least(run, stretch.first_step)
    if not inside.any() or not agreed >= common:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # of what gets no gradient
        ratios = np.median(decay * sizes[inside][:, at] / gradients[inside][:, at], axis=0)
    length = signals.median(ratios)
    if not length >= half * agreed**0.5:
        return None
    found = _by_decay(
        kind,
        run,
        stretch,
        decay,
        left,
        f"A weight decay of {number(decay)} holds the loss up: added to a gradient that still points downhill, it is "
        f"{number(100 * length)} % as long in the middle one of the weight matrices. The weights are down to "
        f"{number(100 * left)} % of their initial size, and the loss {stretch.stood}.",
        Chart("heatmap", "layers", ("weight_norm",), "Norm of each tensor", log=True),
    )
    return replace(found, severity="info") if heard else found


def _largest_decay(run: Run) -> float:
    return max((float(group.get("weight_decay") or 0) for group in run.meta["hyperparameters"]), default=0.0)


def _by_decay(kind: str, run: Run, stretch: Flat, decay: float, share: float, summary: str, chart: Chart) -> Finding:
    return stretch.finding(
        kind,
        "weight-decay",
        (),
        summary,
        {
            "weights over initial": share,
            "weight decay": decay,
            "loss": stretch.level,
            "share of the run": stretch.share,
        },
        (
            *_without_the_rate(run, decay),
            *_decoupled(run),
            f"lower weight_decay from {number(decay)} to {number(min(decay / 100, 0.01))}",
            "leave biases and the parameters of norms out of it: a parameter group with weight_decay=0",
        ),
        (LOSS, chart),
        rf"\mathbf{{w}} \leftarrow (1 - \alpha\,\lambda)\,\mathbf{{w}} - \dots, \quad \lambda = {tex(decay)}",
    )


def _decoupled(run: Run) -> tuple[str, ...]:
    """Where the decay goes through the averages of the gradient and is divided by its size, which leaves the rate."""
    name = str(run.meta["optimizer"])
    if name not in ("Adam", "NAdam", "RAdam") or _is_decoupled(run):
        return ()
    return (
        f"use torch.optim.AdamW: {name} adds the decay to the gradient and divides both by their size, so that weights "
        "whose decay is larger than their gradient shrink by the whole rate",
    )


def _is_decoupled(run: Run) -> bool:
    return any(group.get("decoupled_weight_decay") for group in run.meta["hyperparameters"])


def _without_the_rate(run: Run, decay: float, *, near: float = 0.1) -> tuple[str, ...]:
    """Where the first update took that share off nearly all tensors, whatever the rate."""
    _, _, sizes = run.matrix("layers", "weight_norm", copy=False)
    _, _, updates = run.matrix("layers", "update_norm", copy=False)
    rate = optimizer.last_rate(run)
    if not len(sizes) or not len(updates):
        return ()
    with np.errstate(invalid="ignore"):  # of tensors that are 0 and stay so
        taken = signals.median(updates[0] / (sizes[0] + updates[0]))
    if not abs(taken - decay) <= near * decay or rate > 0.5:
        return ()
    return (
        f"multiply the decay by the learning rate, w *= 1 - lr * weight_decay: each update takes "
        f"{number(100 * taken)} % off the weights, and that would take {number(100 * rate * decay)} %",
    )


def _of_matrices(run: Run, names: list[str]) -> list[int]:
    """Which of these columns are of weight matrices."""
    matrices = by_layer.matrices(run)
    return [index for index, name in enumerate(names) if name in matrices]


def _left_of_matrices(run: Run, step: int) -> dict[str, float]:
    """What is left of the size of each matrix."""
    steps, names, norms = by_layer.matrix(run, "layers", "weight_norm")
    at = [index for index in _of_matrices(run, names) if norms[0, index] > 0]
    now = norms[steps <= step]
    if not len(now):
        return {}
    shares = now[-1, at] / norms[0, at]
    return {names[index]: float(share) for index, share in zip(at, shares, strict=True) if np.isfinite(share)}


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
