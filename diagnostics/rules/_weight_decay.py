"""Weights that decay, or a penalty in the loss, has taken away, or keeps from where the gradient points.

Source: lecture, "Plateaux" (a signal that does not get through); Loshchilov and Hutter 2019, "Decoupled Weight Decay
Regularization".
"""

from dataclasses import replace

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._below_linear import rival, said_of_linear
from diagnostics.rules._charts import LOSS
from diagnostics.rules._explained import Explained
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._raw_inputs import normalizes
from diagnostics.rules._stretches import Flat
from diagnostics.rules._verdict import WEIGHT_DECAY
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

WEIGHT_PENALTY = "weight-penalty"
_ADDED = r"\mathbf{g} = \nabla\mathcal{L}(\mathbf{w}) + \lambda\,\mathbf{w}"
_BESIDE = r"\mathbf{w} \leftarrow (1 - \alpha\,\lambda)\,\mathbf{w} - \dots"
_IN_THE_MIDDLE = " in the middle one of the weight matrices"
_COUPLED = {"SGD", "Adam", "NAdam", "RAdam", "RMSprop", "Adagrad"}  # of torch.optim: the decay is added to the gradient


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


def penalized(
    kind: str,
    run: Run,
    stretch: Flat,
    *,
    left: float = 0.2,  # as of a decay; of the penalty too, which is one of weights if it goes with them
) -> Finding | None:
    """Weights that a term of the loss has made next to nothing, and itself with them, where a linear model finds
    something to learn: where there is nothing, weights may go."""
    (steps, norms), penalty = signals.column(run, "weight_norm"), _other_terms(run)
    late = norms[stretch.holds(steps)]
    if _largest_decay(run) > 0 or not len(late) or not norms[0] > 0 or penalty is None:
        return None
    share, (first, last) = float(late[-1] / norms[0]), penalty
    linear = rival(run, stretch.first_step)
    if not (share <= left and first > 0 and abs(last) <= left * first) or linear is None or not linear.learns:
        return None
    return stretch.finding(
        kind,
        WEIGHT_PENALTY,
        (),
        f"A penalty in the loss, {number(first)} at first, has brought the weights to {number(100 * share)} % of their "
        f"initial size and itself to {number(max(last, 0.0))}: the layers pass on next to nothing, and the loss "
        f"{stretch.stood}.{said_of_linear(linear)}",
        {"weights over initial": share, "penalty at first": first, "loss": stretch.level},
        (
            "multiply the penalty by a hundredth: it is to cost little beside what can be learned, and a sum over all "
            "weights grows with their number",
            "leave biases and the parameters of norms out of it",
        ),
        (LOSS, Chart("line", "scalars", ("weight_norm",), "Norm of all weights", log=True)),
        r"\mathcal{L}(\mathbf{w}) + \lambda \Omega(\mathbf{w})",
    )


def _other_terms(run: Run) -> tuple[float, float] | None:
    """What the loss is more than the part that compares, at the first update for which both are known and at the last;
    nothing where that part was the whole."""
    table = run.table("scalars", ["loss", "partial_loss", "constant_loss"])
    known = (table["loss"] - table["partial_loss"]).where(table["constant_loss"].isna(), 0.0).dropna()
    return (float(known.iloc[0]), float(known.iloc[-1])) if len(known) else None


def held_by_decay(
    kind: str,
    run: Run,
    stretch: Flat,
    meant: bool,
    state: str = "",
    *,
    half: float = 0.5,
    common: float = 0.1,  # of the squared gradient is the same in all batches: the loss has a way down
) -> Finding | None:
    """A decay that holds the loss up: half of the matrices have lost `half` of their size, the loss does not come down
    though its gradient surely points somewhere, and the decay undoes what that does. Where next to nothing is to be
    learned there is no such part. `state`: of the loss, in words; that it stood where none is given."""
    decay, left_of = _largest_decay(run), _left_of_matrices(run, stretch.last_step)
    left = signals.median(np.array([*left_of.values()]))
    if stretch.escaped or not decay or not left <= half:
        return None
    agreed = signal.surely_at_least(run, stretch.first_step)
    told = _undone(run, stretch, decay, half, agreed) if agreed >= common else None
    proven = told is not None or bool(state)  # that the loss has a way down
    told = told or _outweighing(run, decay, left)
    if told is None:
        return None
    found = _by_decay(
        kind,
        run,
        stretch,
        decay,
        left,
        f"A weight decay of {number(decay)} {'holds' if proven else 'may hold'} the loss up: {told}. The "
        f"weights are down to {number(100 * left)} % of their initial size, and the loss {state or stretch.stood}.",
        Chart("heatmap", "layers", ("weight_norm",), "Norm of each tensor", log=True),
    )
    return found if proven and not meant else replace(found, severity="info")


def may_be_meant(run: Run, explained: Explained, heard: bool, *, half: float = 0.5) -> bool:
    """Whether inputs are heard with it: so much of a decay in the gradient may be meant; of one beside it, that takes
    back more than it leaves, only where they explain `half` of the loss."""
    return explained.share + 3 * explained.error >= half if _is_decoupled(run) else heard


def behind_linear(kind: str, run: Run, found: Finding) -> Finding | None:
    """A decay that keeps a network behind a linear model, as `found`."""
    loss, linear = found.evidence["loss"], found.evidence["loss of a linear model"]
    history = signals.loss(run)
    share = (history.last_step - found.first_step) / max(history.last_step - int(history.steps[0]), 1)
    stretch = Flat(found.first_step, history.last_step, loss, share, escaped=False)
    state = f"is {number(loss)}, where a linear model of the same inputs would have {number(linear)}"
    return held_by_decay(kind, run, stretch, False, state)


def _undone(run: Run, stretch: Flat, decay: float, half: float, agreed: float) -> str | None:
    """What a decay takes back, in words. Added to a gradient it is at least `half` as long as the part of that which is
    the same in all batches: where they rest it is as long. Beside the gradient's part of the update, it is at least as
    long as what both leave of that; a sound one is a twentieth of it."""
    steps, names, sizes = by_layer.matrix(run, "layers", "weight_norm")
    inside, at = stretch.holds(steps), _of_matrices(run, names)
    beside = _is_decoupled(run)
    if not inside.any() or not (beside or run.meta["optimizer"] in _COUPLED):
        return None
    _, _, lengths = by_layer.matrix(run, "layers", "update_norm" if beside else "grad_norm")
    times = decay * (optimizer.rate_at(run, steps[inside]) if beside else 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # of what gets no gradient
        ratios = np.median(times * sizes[inside][:, at] / lengths[inside][:, at], axis=0)
    length = signals.median(ratios)
    if beside:
        taken = f"of each update it takes back {number(length)} times as much as is left of it{_IN_THE_MIDDLE}"
        return taken if length >= 1 else None
    added = f"added to a gradient that still points downhill, it is {number(100 * length)} % as long{_IN_THE_MIDDLE}"
    return added if length >= half * agreed**0.5 else None


def _outweighing(
    run: Run,
    decay: float,
    left: float,
    *,
    gone: float = 0.1,  # of the size of the middle matrix: what the loss asks for is not what is left
) -> str | None:
    """Of a decay in the gradient, which is that of a penalty: at the first weights it is as large as half the loss, so
    that hardly anything the loss could gain would be worth them."""
    if _is_decoupled(run) or run.meta["optimizer"] not in _COUPLED or left > gone:
        return None
    _, names, norms = by_layer.matrix(run, "layers", "weight_norm")
    penalty = 0.5 * decay * float(np.square(norms[0, _of_matrices(run, names)]).sum())
    start = signals.loss(run).start
    if not penalty > 0.5 * start > 0:
        return None
    return f"its penalty on the first weights is {number(penalty)}, where the loss was {number(start)}"


def _largest_decay(run: Run) -> float:
    return max((float(group.get("weight_decay") or 0) for group in run.meta["hyperparameters"]), default=0.0)


def _by_decay(kind: str, run: Run, stretch: Flat, decay: float, share: float, summary: str, chart: Chart) -> Finding:
    return stretch.finding(
        kind,
        WEIGHT_DECAY,
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
        (_ADDED if run.meta["optimizer"] in _COUPLED and not _is_decoupled(run) else _BESIDE)
        + rf", \quad \lambda = {tex(decay)}",
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
