r"""Weights that get exactly no gradient.

## What it is
Trainable weights receive a gradient of exactly zero, or none at all, update after update. No learning rate moves
them.

## What we look at
The gradient norm of each trainable tensor on the measured updates: exactly zero (or absent) on every one, or zero for
all tensors from some update on, for the last third of the run, while there is a loss left and a sigmoid or tanh of the
model is exactly at its flat end, or most of the loss is left. And whether all second derivatives that the loss takes of
the network, by its inputs, are exactly zero. The cause is read from the activation functions the model calls, from how
many numbers a softmax is taken of, and from whether the loss has a gradient at all.

## Why it happens
Backpropagation multiplies by the derivative of every function on the way: $\bar z_i = \bar h_i\,\phi'(z_i)$. A
hard threshold is flat on both sides of its jump, $\phi'(z) = 0$, and so is the 0-1 loss, which counts errors: a
small change of the weights changes no prediction, so the loss does not change either. The landscape is a plateau
everywhere. It becomes one, too, where a sigmoid is so sure that in floating point it is exactly 0 or 1, or all values
are beyond the bounds of a clamp. A network of ReLUs is piecewise linear: its second derivative is zero, and so is the
gradient of each term of a loss that is made of it, as of a differential equation's.

*Softmax of one*: a softmax makes shares of the numbers it is given, and the share of a single one is 1.

*Cancelled*: the ratio of a policy to itself is 1 whatever the weights are, and a difference of a network's answers to
itself is 0. Gradients come from both, each the other's opposite.

*Clipped to zero*: clipping scales a gradient that is longer than its bound to the bound, and every gradient is longer
than 0.

## What to try
Replace the threshold by a smooth unit (sigmoid, tanh) or a ReLU, or use a straight-through estimator; replace the
0-1 loss by a surrogate that is smooth in the outputs, such as cross-entropy, and keep counting errors as a
metric. A loss of second derivatives needs units that have some: tanh, SiLU, softplus or sine.

## When this is wrong
A branch that is idle in a run that learns is information, unless it is most of the network and more lies behind it, or
a clamp is seen to end its gradient: a term of a loss that is meant to be 0 throughout looks like that. Experts that no
input is routed to, and parameters frozen by `requires_grad_(False)`, get no gradient and are fine. An offset of all
scores, of which a loss of pairs takes differences, is information. Dead ReLU units and wholly saturated ones give exact
zeros too; they are reported as such.

## In the lecture
*Plateaux*: "0-1 loss", "hard threshold activations".
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _cut_graph as cut_graph
from diagnostics.rules import _no_gradient as no_gradient
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import GRADIENT_NORM, GRADIENTS, LOSS
from diagnostics.rules._finding import Finding
from diagnostics.rules._no_second_derivative import SMOOTH, is_piecewise_linear, no_second_derivative
from diagnostics.rules._words import names_of, number
from diagnostics.rules._zero_factors import zero_factors
from diagnostics.rules._zero_inputs import given_zeros
from diagnostics.run import Run

KIND = "zero-gradient"
RANK = 6
GONE = 1e-3  # of the starting loss: what is left of one that may rest


def check(
    run: Run,
    *,
    records: int = 3,  # measured updates in a row without any gradient
    inactive: float = 0.9,  # share of dead or saturated units that by itself zeroes what lies before the layer
    learned: float = 0.7,  # of the untrained loss: a run this far down learns, and need not need these weights
) -> Iterator[Finding]:
    cut = cut_graph.no_graph(run)
    if len(cut) and by_layer.counts_errors(run):
        yield _zero_one(run, int(cut["step"].iloc[0]))
        return
    if (found := no_second_derivative(KIND, run)) is not None:
        yield found
        return
    steps, names, norms = by_layer.matrix(run, "layers", "grad_norm")
    if len(steps) < records:
        raise signals.Missing(f"layers.grad_norm: {len(steps)} records, {records} needed")
    trainable = _trainable(run, names)
    since = _gone(run, *signals.column(run, "grad_norm"), records) or _gone(run, steps, norms[:, trainable], records)
    flat = _at_flat_end(run, since) if since is not None else []
    stands = not signals.has_learned(run, learned)
    if since is not None and (flat or stands) and not by_layer.has_lost_layer(run, inactive):
        yield _all_gone(run, since, flat, len(trainable))
        return
    silent = [at for at in trainable if not norms[0, at] > 0 and not (norms[:, at] > 0).any()]
    silent = [at for at in silent if not _cancels(names, norms, at) and not _underflows(run, names[at])]
    elsewhere = {*given_zeros(run), *zero_factors(run)}  # other kinds of findings, which take this as their evidence
    told = tuple(names[at] for at in silent if names[at] in elsewhere)
    silent = [at for at in silent if names[at] not in elsewhere]
    if not silent:
        if told:
            yield _told_elsewhere(told, steps)
        return
    hard = [name for name, (function, _) in by_layer.activations(run).items() if function in by_layer.HARD_THRESHOLDS]
    counted = [name for name in hard if name.startswith("loss.")]
    hard = [name for name in hard if name not in counted]
    if len(silent) == len(trainable) and not hard and (counted or by_layer.counts_errors(run)):
        yield _zero_one(run, int(steps[0]))
        return
    # A threshold's gradient is zero; none at all comes from a way not taken, such as one that a rounded index chose.
    if _unrouted(norms, silent) or (not hard and by_layer.has_lost_layer(run, inactive)):
        return
    first_ones = silent == trainable[: len(silent)]  # what lies before something; a branch among others may be idle
    layers = tuple(names[at] for at in silent)
    layered = not by_layer.matrices(run).isdisjoint(layers)  # a scale alone lies within a layer, and before none
    learns = not (layered and (hard or first_ones)) and signals.has_learned(run, learned)
    stuck = _is_the_middle(run, names, trainable, silent) or no_gradient.ends_in_the_flat(run)
    reason = no_gradient.reason(run, layers, hard)
    learns |= no_gradient.is_an_offset(run, layers)
    yield Finding(
        kind=KIND,
        cause=reason.cause,
        severity="critical" if not learns else "warning" if stuck or reason.never_meant else "info",
        first_step=int(steps[0]),
        last_step=None,
        layers=layers,
        summary=" ".join(
            [
                *([reason.first] if reason.first else []),
                f"{len(silent)} of {len(trainable)} trainable tensors ({names_of(layers)}) got exactly no gradient in "
                f"all {len(steps)} measured updates{', ' if reason.where else ''}{reason.where}.",
            ]
        ),
        evidence={
            "silent tensors": float(len(silent)),
            "trainable tensors": float(len(trainable)),
            "records": float(len(steps)),
        },
        remedies=reason.remedies,
        charts=(GRADIENTS,),
        formula=reason.formula,
    )


def _told_elsewhere(layers: tuple[str, ...], steps: np.ndarray) -> Finding:
    return Finding(
        kind=KIND,
        cause=None,
        severity="info",
        first_step=int(steps[0]),
        last_step=None,
        layers=layers,
        summary=f"{names_of(layers)} got exactly no gradient in all {len(steps)} measured updates.",
        evidence={"silent tensors": float(len(layers)), "records": float(len(steps))},
        remedies=("look at what they are multiplied by: zeros have no gradient to give",),
        charts=(GRADIENTS,),
    )


_ENDS_FLAT = {"sigmoid", "tanh"}
_CLIP = "clip gradients, torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0), or lower the learning rate"


def _is_the_middle(run: Run, names: list[str], trainable: list[int], silent: list[int]) -> bool:
    """Whether most of the trained weights are silent, and others than their like lie behind: no branch, nor heads of
    which one is in use."""
    layers = by_layer.described(run)
    if any(names[at] not in layers for at in trainable):
        return False
    weights, idle = (sum(layers[names[at]]["parameters"] for at in some) for some in (trainable, silent))
    shapes = [layers[names[at]]["shape"] for at in silent]
    behind = [at for at in trainable if at > silent[-1] and layers[names[at]]["shape"] not in shapes]
    return 2 * idle > weights and bool(behind)


def _gone(run: Run, steps: np.ndarray, norms: np.ndarray, records: int) -> int | None:
    """Step since which all gradients, or their norm, are exactly 0, for the last third of the run at least, if there
    were any before and the loss is not gone as well, as that of a margin that every example keeps."""
    if not norms.size:
        return None
    history = signals.loss(run)
    some = np.flatnonzero(~(norms.reshape(len(steps), -1) == 0).all(1))
    first = int(some[-1]) + 1 if len(some) else 0
    left = abs(history.end) > GONE * abs(history.start)
    if not left or not 0 < first <= len(steps) - records:
        return None
    long = history.steps[-1] - steps[first] >= (history.steps[-1] - history.steps[0]) / 3
    return int(steps[first]) if long else None


def _at_flat_end(run: Run, since: int) -> list[str]:
    """What is exactly at its flat end for every input then, and not as the clamp of a margin that every example keeps,
    where a loss comes to rest. Called at many places, it is one."""
    calls = by_layer.activations(run)
    if not calls:
        return []
    steps, names, saturated = by_layer.matrix(run, "units", "saturated_fraction")
    _, _, slopes = by_layer.matrix(run, "units", "derivative")
    late = slopes[steps >= since]
    flat = (saturated[-1] == 1) | ((late == 0).all(0) if len(late) else False)
    first = dict[str, str]()
    for at, name in enumerate(names):
        if flat[at] and calls[name][0] in _ENDS_FLAT:
            first.setdefault(name.split("#")[0], name)
    return list(first.values())


def _called(function: str, name: str) -> str:
    own = name.split("#")[0].removeprefix("loss.")
    return function if own == function else f"{function} {own}"


def _thrown(run: Run, since: int) -> float:
    """Length of the last gradient before, if it was twice as long as most; else NaN."""
    steps, norms = signals.column(run, "grad_norm")
    before = norms[(steps < since) & (norms > 0)]
    return float(before[-1]) if len(before) and before[-1] >= 2 * np.median(before) else np.nan


def _all_gone(run: Run, since: int, flat: list[str], count: int) -> Finding:
    end, calls = number(signals.loss(run).end), by_layer.activations(run)
    told = names_of([_called(calls[name][0], name) for name in flat])
    at_end = f", and the {told} {'is' if len(flat) == 1 else 'are'} at the flat end for every input" if flat else ""
    linear = not flat and is_piecewise_linear(run)
    thrown = _thrown(run, since)
    by_a_step = f" The update before came of a gradient of {number(thrown)}." if np.isfinite(thrown) else ""
    ends = "" if flat or not (sentence := no_gradient.ending(run)) else f" {sentence}"
    return Finding(
        kind=KIND,
        cause=None,
        severity="critical",
        first_step=since,
        last_step=None,
        layers=tuple(flat),
        summary=f"Since step {since} the gradients of all {count} trainable tensors are exactly 0{at_end}: nothing "
        f"moves any more, and the loss stands at {end}.{by_a_step}{ends}",
        evidence={"trainable tensors": float(count), "loss at end": signals.loss(run).end},
        remedies=(
            *([_CLIP] if by_a_step else []),
            *([SMOOTH] if linear else []),
            *no_gradient.beyond(run),
            "look at what lies between the last layer and the loss: a clamp that all values are beyond, a sigmoid that "
            "is exactly 0 or 1; losses of logits, as F.binary_cross_entropy_with_logits, keep their gradient there",
            "compare the targets with what the output can be: probabilities lie between 0 and 1",
        ),
        charts=(
            GRADIENT_NORM,
            LOSS,
        ),
    )


def _trainable(run: Run, names: list[str]) -> list[int]:
    frozen = {name for name, each in by_layer.described(run).items() if each.get("frozen")}
    return [at for at, name in enumerate(names) if name not in frozen]


def _cancels(names: list[str], norms: np.ndarray, at: int) -> bool:
    """A bias beside a weight that gets a gradient: what reaches the layer sums to zero, because the loss does not
    depend on the bias at all (it compares outputs of the same layer, say)."""
    module, _, kind = names[at].rpartition(".")
    weight = f"{module}.weight".removeprefix(".")
    return kind == "bias" and weight in names and bool(np.nanmax(norms[:, names.index(weight)], initial=0) > 0)


def _underflows(run: Run, name: str) -> bool:
    """A norm of zero, though rows of the gradient are not: their squares are too small for float32."""
    _, names, rows = by_layer.matrix(run, "layers", "silent_fraction")
    weight = f"{name.rpartition('.')[0]}.weight".removeprefix(".")  # of a bias no rows are told
    return any(bool((rows[:, names.index(each)] < 1).any()) for each in (name, weight) if each in names)


def _unrouted(norms: np.ndarray, silent: list[int]) -> bool:
    """No gradient (None) rather than a zero one: the tensors took no part, as an expert that gets no input."""
    return bool(np.isnan(norms[:, silent]).all())


def _zero_one(run: Run, step: int) -> Finding:
    return Finding(
        kind=KIND,
        cause="zero-one-loss",
        severity="critical",
        first_step=step,
        last_step=None,
        layers=(),
        summary=(
            "The loss has no gradient with respect to any weight: it is piecewise constant (counts "
            "errors, or was cut from the graph)."
        ),
        evidence={"updates": float(signals.total(run))},
        remedies=(
            "train on a smooth surrogate: F.cross_entropy(logits, y), and log the error rate with monitor.log",
            "check that the loss is computed from logits, not from argmax, round or a comparison",
        ),
        charts=(LOSS,),
        formula=r"\frac{\partial \mathcal{L}_{0-1}}{\partial z} = 0 \text{ wherever it is defined}",
    )


def explains(finding: Finding, other: Finding) -> bool:
    if "deviation of the gates" in other.evidence:
        return False
    return other.kind in {
        "dead-units",
        "saturated-units",
        "saddle-point",
        "plateau",
        "ravine",
        "lr-too-small",
        "local-minimum",
    }
