"""Signals that shrink from layer to layer: gradients on the way back, or the units' outputs on the way forward.

Source: lecture, recap of the last lecture ("Jacobian close to zero"), for both: a chain of factors below one.
"""

from dataclasses import dataclass, replace

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _stretches as stretches
from diagnostics.rules._charts import GRADIENTS, LOSS
from diagnostics.rules._far_off import INPUT_SCALE
from diagnostics.rules._finding import Finding
from diagnostics.rules._raw_inputs import given, raw, standardize
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

LARGE_STEP = "large-step"
BY_A_STEP = frozenset({LARGE_STEP, INPUT_SCALE})  # causes of dead units that an update killed
UNDERFLOWN = 1e-19  # a norm below, in float32, may be recorded as 0


@dataclass(frozen=True)
class Chain:
    """Weight layers in the order of the model during a flat stretch. `relative`: gradient over weights of each;
    `moved`: what all updates of the stretch together moved each by, over its size."""

    names: list[str]
    relative: np.ndarray
    moved: np.ndarray


def vanishing(
    kind: str,
    run: Run,
    stretch: stretches.Flat,
    heard: bool,
    *,
    moving: bool = False,
    depth: int = 4,  # weight layers: fewer factors of 1/4 make no plateau
    vanished: float = 1e-3,  # of the last layer's relative gradient: the early layers are frozen for a thousand updates
    factor: float = 0.25,  # of the gradient that a layer passes on: the logistic's largest derivative
    frozen: float = 0.1,  # of a layer's size: the most that all updates of the stretch together moved it
) -> Finding | None:
    """Gradients, relative to the weights they move, that shrink geometrically from the output to the input, by three
    orders of magnitude or by more than logistic units must, while the first layer stays where it is; not where the
    last one stays as well, and all updates are too short. Or outputs that shrink so from the input to the output, where
    the first layer stays: of few layers by three orders of magnitude all the same; not where inputs are `heard`, since
    the answers tell of them. `moving`: also where the first layer is moved all the same, whatever its gradient, as by
    Adam; which is then not what holds the run up."""
    unheard = None if heard else _unheard(kind, run, stretch, vanished, frozen)
    if unheard is not None:
        return unheard
    chain = _chain(run, stretch)
    if chain is None:
        return None
    if len(chain.names) < depth:
        kept, least = _forward_of_few(run, stretch, vanished, factor)
        shrunk = least and chain.moved[0] <= frozen and not heard
        return _shrunk(kind, stretch, chain, kept, least) if shrunk else None
    ratio = float(chain.relative[0] / chain.relative[-1])
    passed = ratio ** (1 / (len(chain.names) - 1))
    first, last = (chain.moved[at] <= frozen for at in (0, -1))
    if not last and (ratio <= vanished or (passed <= factor and first)):
        why = _cut_by_steps(kind, run, stretch, chain, ratio) or _drowned_out(kind, run, stretch, chain, ratio)
        if why or not (first or moving):
            return why
        squashing = {function for function, _ in by_layer.activations(run).values()} & {
            "sigmoid",
            "tanh",
            "hardsigmoid",
        }
        return _backward(kind, stretch, chain, passed, ratio, _STRONGER if squashing else _LARGER)
    kept, least = _forward(run, stretch, depth)
    return _shrunk(kind, stretch, chain, kept, least) if kept <= factor and first and not heard else None


def _cut_by_steps(
    kind: str,
    run: Run,
    stretch: stretches.Flat,
    chain: Chain,
    ratio: float,
    *,
    open_: float = 0.01,  # of the last layer's relative gradient, at first: ten times what counts as vanished
    times: float = 30.0,  # as much as since: what weights that were trained on lose is less
    begun: int = 3,  # records of the first updates
    far: float = 0.05,  # of a layer's size, at such an update: fifty times what is usual
) -> Finding | None:
    """Where the gradient came through at the first update, and the first few threw the weights about."""
    steps, columns, gradients = by_layer.matrix(run, "layers", "grad_norm")
    _, _, weights = by_layer.matrix(run, "layers", "weight_norm")
    _, _, updates = by_layer.matrix(run, "layers", "update_norm")
    at = [columns.index(name) for name in chain.names]
    with np.errstate(divide="ignore", invalid="ignore"):
        first = gradients[0, at] / weights[0, at]
        moved = _largest((updates / weights)[:begun, at])
        came = float(first[0] / first[-1])
    if not (came >= max(open_, times * ratio) and moved >= far):
        return None
    step, name = int(steps[:begun][-1]), chain.names[0]
    rate = optimizer.highest_rate(run, step)
    summary = (
        f"The first updates were too large: each moved a layer by up to {number(100 * moved)} % of its size. Before "
        f"them {name} got {number(came)} of the gradient that the last layer gets, for its size, and gets "
        f"{number(ratio)} of it since; the loss {stretch.stood}."
    )
    remedies = (
        f"lower the learning rate, {number(rate)} by step {step}, to {number(rate / 10)}, say, or warm "
        "it up over the first updates",
        "clip gradients: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    )
    evidence = {"first over last": ratio, "first over last at first": came, "moved at an update": moved}
    formula = (
        rf"\|\nabla_1\| / \|\nabla_{{{len(chain.names)}}}\|:\quad {tex(came)} \to {tex(ratio)} \quad"
        rf"\text{{after}}\quad \|\Delta\mathbf{{W}}\| / \|\mathbf{{W}}\| = {tex(moved)}"
    )
    return _finding(kind, stretch, chain, summary, evidence, remedies, formula, LARGE_STEP)


def _drowned_out(kind: str, run: Run, stretch: stretches.Flat, chain: Chain, ratio: float) -> Finding | None:
    """Where a later layer than the first is given raw inputs, as a picture beside a time: the gradient of its weights
    is as large as they are, and what the first one adds is small beside them."""
    inputs, first = given(run), chain.names[0]
    if not raw(run) or not any(name.startswith(f"{inputs.layer}.") for name in chain.names[1:] if inputs.layer):
        return None
    summary = (
        f"{inputs.layer} is given inputs of a size of {number(inputs.size)}, where weights start for one of 1. Beside "
        f"them all that comes from elsewhere is small: {first} gets {number(ratio)} of the gradient that the last "
        f"layer gets, and the loss {stretch.stood}."
    )
    remedies = (standardize(run), f"or put a norm before {inputs.layer}")
    evidence = {"first over last": ratio, "size of an input": inputs.size}
    formula = r"\mathbf{z} = \mathbf{W}\mathbf{x} + \mathbf{V}\mathbf{t}, \quad \|\mathbf{x}\| \gg \|\mathbf{t}\|"
    found = _finding(kind, stretch, chain, summary, evidence, remedies, formula, INPUT_SCALE)
    return replace(found, layers=(first, *(name for name in chain.names if name.startswith(f"{inputs.layer}."))))


def is_of_a_vanished_signal(dead: Finding, *, partly: float = 0.02) -> bool:
    """Whether units are dead because the signal vanished before them, so that their biases alone decide."""
    return dead.cause not in BY_A_STEP and dead.evidence["partly active"] <= partly


def _chain(run: Run, stretch: stretches.Flat) -> Chain | None:
    names = _weights(run)
    steps, columns, gradients = by_layer.matrix(run, "layers", "grad_norm")
    _, _, weights = by_layer.matrix(run, "layers", "weight_norm")
    _, _, updates = by_layer.matrix(run, "layers", "update_norm")
    at = [columns.index(name) for name in names if name in columns]
    inside = stretch.holds(steps)
    if not at or not inside.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.median(gradients[inside][:, at] / weights[inside][:, at], axis=0)
        moved = np.array([signals.median(each) for each in (updates[inside][:, at] / weights[inside][:, at]).T])
    if not (np.isfinite(relative).all() and (relative > 0).all()):
        return None
    return Chain([columns[each] for each in at], relative, moved * (stretch.last_step - stretch.first_step + 1))


def _unheard(kind: str, run: Run, stretch: stretches.Flat, vanished: float, frozen: float) -> Finding | None:
    """No weight matrix moves, and even the last one, whose gradient is what it is given times that of the bias beside
    it, gets next to none: what reaches it is next to nothing."""
    steps, names, gradients = by_layer.matrix(run, "layers", "grad_norm")
    _, _, weights = by_layer.matrix(run, "layers", "weight_norm")
    _, _, updates = by_layer.matrix(run, "layers", "update_norm")
    inside = stretch.holds(steps)
    matrices = [at for at, name in enumerate(names) if name in _weights(run)]
    biases = [at for at, name in enumerate(names) if name not in by_layer.matrices(run)]
    if not matrices or not biases or not inside.any():
        return None
    heard, bias = (_largest(gradients[inside][:, at]) for at in (matrices, biases))
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = _largest((updates[inside] / weights[inside])[:, matrices])
    count = stretch.last_step - stretch.first_step + 1
    if not (bias > 0 and heard <= vanished * bias and moved * count <= frozen):
        return None
    if heard == 0 and not _underflow(run, inside):
        return None
    heard = max(heard, UNDERFLOWN)
    summary = (
        f"What reaches the output has vanished on its way: no weights get more than {number(heard / bias)} of the "
        f"gradient that a bias gets, all of them stay where they are, and the loss {stretch.stood}."
    )
    formula = (
        r"\bar{\mathbf{W}} = \bar{\mathbf{z}}\,\mathbf{h}^\top, \quad \bar{\mathbf{b}} = \bar{\mathbf{z}}, \quad "
        rf"\|\bar{{\mathbf{{W}}}}\| / \|\bar{{\mathbf{{b}}}}\| \approx {tex(heard / bias)}"
    )
    remedies = (*_LARGER, "where many matrices are multiplied, start each near the identity")
    chain = Chain([names[at] for at in matrices], np.array([]), np.array([]))
    return _finding(kind, stretch, chain, summary, {"weights over biases": float(heard / bias)}, remedies, formula)


def _largest(columns: np.ndarray) -> float:
    """Of the columns' medians; NaN if there are none."""
    medians = [signals.median(each) for each in columns.T]
    return max((each for each in medians if np.isfinite(each)), default=np.nan)


def _underflow(run: Run, inside: np.ndarray) -> bool:
    """Whether gradients whose norms are 0 have rows that are not."""
    _, _, rows = by_layer.matrix(run, "layers", "silent_fraction")
    return bool((rows[inside] < 1).any())


def _weights(run: Run) -> list[str]:
    """Trainable weight matrices in the order of the model, less the embeddings, of which a batch moves a few rows
    only."""
    layers = run.meta["layers"]
    chosen = [each for each in layers if len(each.get("shape", ())) >= 2 and not each.get("frozen")]
    return [each["name"] for each in chosen if not str(each.get("module", "")).startswith("Embedding")]


def _forward(run: Run, stretch: stretches.Flat, depth: int) -> tuple[float, str]:
    """Factor a layer by which the deviation of the hidden units' outputs shrinks, down to the layer where it is the
    smallest, and that layer; 1 where there are too few. What biases make units differ by counts as deviation too."""
    names, found = _deviations(run, stretch)
    if len(names) < depth:
        return 1.0, ""
    least = int(np.argmin(found))
    return (float(found[least] / found[0]) ** (1 / least), names[least]) if least >= depth - 1 else (1.0, "")


def _forward_of_few(run: Run, stretch: stretches.Flat, vanished: float, factor: float) -> tuple[float, str]:
    """The same from the inputs' deviation on, to the last hidden layer, where every layer shrinks it and all together
    by `vanished`; no layer if not. Inputs of any scale are no reason: a unit's first factor undoes that, no other does.
    """
    names, found = _deviations(run, stretch)
    spread = run.table("inputs", ["step", "std"])
    first = signals.array(spread.loc[spread["step"] == spread["step"].min()], "std")
    chain = np.array([np.sqrt(np.mean(first**2)) if len(first) else np.nan, *found])
    if len(found) < 2 or not (chain[1:] <= factor * chain[:-1]).all() or chain[-1] > vanished * chain[0]:
        return 1.0, ""
    return float(chain[-1] / chain[0]) ** (1 / len(found)), names[-1]


def _deviations(run: Run, stretch: stretches.Flat) -> tuple[list[str], np.ndarray]:
    """Hidden layers and the deviation of their units over the inputs at the start of the stretch; none if unknown."""
    steps, names, deviations = run.matrix("units", "std")
    _, _, hidden = run.matrix("units", "hidden")
    inside = np.flatnonzero(stretch.holds(steps))
    at = np.flatnonzero(hidden[inside[0]] == 1) if len(inside) else np.array([], dtype=int)
    found = deviations[inside[0], at] if len(at) else np.array([])
    known = len(found) > 0 and np.isfinite(found).all() and found[0] > 0
    return ([str(names[each]) for each in at], found) if known else ([], np.array([]))


_LARGER = (
    "start with larger weights: torch.nn.init.kaiming_normal_ (xavier_normal_ before tanh) on every layer",
    "put nn.BatchNorm1d before each activation, or add residual connections",
)
_STRONGER = (
    "replace the logistic units by ReLU with Kaiming initialization, or by tanh with Xavier",
    "put nn.BatchNorm1d before each activation, or add residual connections",
)


def _backward(
    kind: str, stretch: stretches.Flat, chain: Chain, passed: float, ratio: float, remedies: tuple[str, ...]
) -> Finding:
    first = chain.names[0]
    summary = (
        f"The gradient shrinks by a factor of {number(1 / passed)} a layer towards the input: {first} gets "
        f"{number(ratio)} of what the last layer gets, and the loss {stretch.stood}."
    )
    evidence = {"factor a layer": passed, "first over last": ratio}
    count = len(chain.names)
    formula = rf"\|\nabla_1\| / \|\nabla_{{{count}}}\| \approx {tex(passed)}^{{{count - 1}}} = {tex(ratio)}"
    return _finding(kind, stretch, chain, summary, evidence, remedies, formula)


def _shrunk(kind: str, stretch: stretches.Flat, chain: Chain, kept: float, last: str) -> Finding:
    summary = (
        f"The units' outputs shrink by a factor of {number(1 / kept)} a layer: what reaches {last} hardly depends on "
        f"the inputs, the weights get next to no gradient, and the loss {stretch.stood}."
    )
    formula = (
        rf"\operatorname{{std}}(\mathbf{{h}}_\ell) \approx {tex(kept)} \operatorname{{std}}(\mathbf{{h}}_{{\ell-1}})"
    )
    return _finding(kind, stretch, chain, summary, {"factor a layer": kept}, _LARGER, formula)


def _finding(
    kind: str,
    stretch: stretches.Flat,
    chain: Chain,
    summary: str,
    evidence: dict[str, float],
    remedies: tuple[str, ...],
    formula: str,
    cause: str = "vanishing-gradient",
) -> Finding:
    return stretch.finding(
        kind,
        cause,
        tuple(chain.names[: max(1, len(chain.names) // 2)]),
        summary,
        evidence | {"loss": stretch.level, "layers": float(len(chain.names))},
        remedies,
        (GRADIENTS, LOSS),
        formula,
    )
