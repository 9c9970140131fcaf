"""Why units are dead: a step, inputs to one side of zero, the bias, or the weights they began with.

Source: lecture, "Plateaux" (dead units) and "Ill-conditioned curvature" (normalization).
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules._raw_inputs import follows, given, normalizes, raw, weights_before_batch_norm
from diagnostics.rules._unmoved import moves
from diagnostics.run import Run

STOOD = 1e-2  # of its size, by all updates so far: a matrix that moved less kills no unit with inputs of the usual size
NEARLY_ALL = 0.75  # of a layer's units


def cause_of(run: Run, layer: str, step: int, dead: np.ndarray, jumped: float, sudden: float) -> str:
    known = dead[~np.isnan(dead)]
    _, names, zeros = by_layer.matrix(run, "units", "zero_fraction")
    began = float(np.fmin(known[0], zeros[0, names.index(layer)]))  # no more can be dead than outputs are zero
    spread, first = conditioning.spread(run), next(iter(by_layer.activations(run)), layer)
    # Of random directions half start off, not nearly all.
    uncentered = spread is not None and (spread.away >= conditioning.AWAY or _on_for_all_or_none(run, first))
    reads = given(run).layer if raw(run) else ""
    behind = [each for each in names if follows(run, reads, each)] if reads else []
    uncentered |= any(_on_for_all_or_none(run, each) for each in behind)
    uncentered &= began < NEARLY_ALL and weights_before_batch_norm(run) >= 2
    came = by_layer.thrown_at_once(run) or began < known[-1] - sudden or (jumped >= sudden and began < 0.5)
    # A quarter off from the start is those directions; steps then turn more of them off, or on.
    if came and not _stood(run, step) and not (uncentered and began >= 0.25):
        return "input-scale" if raw(run) and not _normalized_before(run, layer) else "large-step"
    if _pushed_by_bias(run, layer):
        return "bias"
    return "uncentered-inputs" if uncentered else "initialization"


def _normalized_before(run: Run, activation: str) -> bool:
    """Whether a layer that scales what it is given lies before; anywhere, of a function that has no place."""
    types, base = {each["name"]: each["type"] for each in run.meta["modules"]}, activation.split("#")[0]
    if base not in types:
        return normalizes(run)
    before = list(types)[: list(types).index(base)]
    return any("Norm" in types[name] for name in before)


def _on_for_all_or_none(run: Run, layer: str, *, share: float = 0.25, between: float = 0.1) -> bool:
    """Whether the units of a layer that is given inputs are, from the start: a good `share` of each, and few zeros of
    any others. Weights of no preferred sign do so where the inputs lie to one side, whatever their size."""
    _, names, dead = by_layer.dead_fractions(run)
    _, _, zeros = by_layer.matrix(run, "units", "zero_fraction")
    at = names.index(layer)
    known = np.flatnonzero(~np.isnan(dead[:, at]))
    if not len(known):
        return False
    off, zero = float(dead[known[0], at]), float(zeros[known[0], at])
    return off >= share and 1 - zero >= share and zero - off <= between


def _stood(run: Run, until: int) -> bool:
    """Whether most of the weights had hardly moved by then: the biases alone had."""
    moved = list(moves(run, until=until).values())
    return bool(moved) and float(np.median(moved)) <= STOOD


def _pushed_by_bias(run: Run, activation: str, *, down: float = 0.5) -> bool:
    """Whether a bias of the size of the mean input, rather than the weights, moves all inputs `down`, by that part of
    their deviation at least: where half of the units have such a bias it is the whole."""
    _, names, means = run.matrix("units", "input_mean")
    names = [str(each) for each in names]
    if activation not in names:
        return False
    at = names.index(activation)
    known = np.flatnonzero(~np.isnan(means[:, at]))
    bias = _bias_before(run, activation)
    if not len(known) or bias is None:
        return False
    mean, deviation = float(means[known[0], at]), float(run.matrix("units", "input_std")[2][known[0], at])
    return mean <= -down * deviation and bias >= 0.5 * abs(mean)


def _bias_before(run: Run, activation: str) -> float | None:
    """Root mean square of the bias of the last parametric module before the activation, at the first record."""
    layers = by_layer.described(run)
    order = [each["name"] for each in run.meta["modules"]]
    biases = [f"{name}.bias" for name in order if f"{name}.bias" in layers]
    base = activation.split("#")[0]
    if base in order:
        before = [name for name in biases if order.index(name.removesuffix(".bias")) < order.index(base)][-1:]
    else:
        before = _bias_of_size(run, activation, [name for name in biases if len(layers[name]["shape"]) == 1], layers)
    _, names, norms = run.matrix("layers", "weight_norm")
    known = [str(each) for each in names]
    if not before or before[0] not in known:
        return None
    return float(norms[0, known.index(before[0])]) / float(np.sqrt(np.prod(layers[before[0]]["shape"])))


def _bias_of_size(run: Run, activation: str, biases: list[str], layers: dict[str, dict]) -> list[str]:
    """The bias before a function such as `F.relu`, which has no place among the modules: of the biases with one entry a
    unit, the one that comes as this call comes among the calls with as many units."""
    calls = by_layer.activations(run)
    units = calls.get(activation, ("", 0))[1]
    alike = [name for name, (_, count) in calls.items() if count == units]
    fitting = [name for name in biases if layers[name]["shape"][0] == units]
    return fitting[alike.index(activation) :][:1] if activation in alike else []
