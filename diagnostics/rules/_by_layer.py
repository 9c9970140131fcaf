"""What several rules ask of the layers of a run: matrices of steps by layers, and which of their units are lost."""

from functools import lru_cache
from typing import Any

import numpy as np

from diagnostics.rules._signals import Missing, loss_calls
from diagnostics.run import Run

RECTIFIERS = frozenset({"relu", "relu6", "threshold relu"})  # exactly 0 where they are inactive
_STEPS = ("sign", "heaviside", "step", "threshold", "hard_threshold", "round", "floor", "ceil", "trunc", "argmax")
_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
HARD_THRESHOLDS = frozenset((*_STEPS, *_COMPARISONS))
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_NOTHING = {
    "symmetry": "symmetry: the units of no hidden layer were compared, as it has none or no forward pass was followed",
    "units": "units: no activation function was observed, as it has none or no forward pass was followed",
    "layers": "layers: no measured update was recorded",
}
_UNCALLED = "the model itself was never called, only parts or methods of it; give monitor.step a closure"


def matrix(run: Run, table: str, name: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Steps (T,), layer names and values (T, L); raises `Missing` where nothing was recorded."""
    steps, names, values = run.matrix(table, name, copy=False)
    if len(steps) == 0 or len(names) == 0:
        unseen = table != "layers" and run.meta["never_called"] and not run.meta["closure"]
        raise Missing(f"{table}: {_UNCALLED}" if unseen else _NOTHING[table])
    return steps, [str(each) for each in names], values


def described(run: Run) -> dict[str, dict[str, Any]]:
    """What the run says of each parameter tensor: its shape, number of parameters, whether it is frozen, ..."""
    return {str(each["name"]): each for each in run.meta["layers"]}


def type_of(run: Run, name: str) -> str:
    """Of the module that a parameter belongs to; "" if unknown."""
    return str(described(run).get(name, {}).get("module") or "")


def matrices(run: Run) -> set[str]:
    """Parameters of two dimensions or more: all but biases and gains."""
    return {name for name, each in described(run).items() if len(each.get("shape", ())) >= 2}


def with_matrix(run: Run) -> set[str]:
    """Modules that have one."""
    return {name.rsplit(".", 1)[0] for name in matrices(run)}


@lru_cache(maxsize=16)
def activations(run: Run) -> dict[str, tuple[str, int]]:
    """Activation call -> (function, number of units), in the order of the forward pass."""
    steps, names, _ = run.matrix("units", "dead_fraction", copy=False)
    if len(steps) == 0:
        return {}
    table = run.until(int(steps[0])).table("units", ["layer", "activation", "units"])
    table = (
        table if set(table["layer"]) == set(map(str, names)) else run.table("units", ["layer", "activation", "units"])
    )
    rows = table.drop_duplicates("layer")
    return {str(a): (str(b), int(c)) for a, b, c in zip(rows["layer"], rows["activation"], rows["units"], strict=True)}


def dead_fractions(run: Run) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Steps (T,), activation calls and dead fractions (T, L), NaN for the loss's own, such as a hinge, and for a call
    of several that is given nothing, as where a state begins at 0. Where too few inputs were seen to tell a dead unit
    from a sparse one, a layer without a single active entry is dead all the same."""
    steps, names, dead = matrix(run, "units", "dead_fraction")
    rectifies = [activations(run).get(name, ("",))[0] in RECTIFIERS for name in names]
    _, _, zeros = matrix(run, "units", "zero_fraction")
    dead = np.where(np.isnan(dead) & (zeros == 1) & rectifies, 1.0, dead)
    ignored = np.array([name.startswith("loss.") for name in names]) | _given_nothing(run, names, dead)
    return steps, names, np.where(ignored, np.nan, dead)


def _given_nothing(run: Run, names: list[str], dead: np.ndarray) -> np.ndarray:
    """(T, L) whether the input of a call is 0 throughout, while another call of the same function has units that
    live."""
    nothing = np.ones(dead.shape, dtype=bool)
    for column in ("input_mean", "input_std"):
        nothing &= matrix(run, "units", column)[2] == 0
    bases, calls = np.array([name.split("#")[0] for name in names]), np.arange(len(names))
    for at in np.flatnonzero(nothing.any(0)):
        nothing[:, at] &= (dead[:, (bases == bases[at]) & (calls != at)] < 1).any()
    return nothing


def has_lost_layer(run: Run, share: float) -> bool:
    """Whether at least that share of some layer's units is dead at the last record, or saturated in a hidden layer
    (outputs may be sure of themselves): what lies before it gets next to no gradient."""
    if not activations(run):
        return False
    _, _, dead = dead_fractions(run)
    _, _, saturated = matrix(run, "units", "saturated_fraction")
    _, _, hidden = matrix(run, "units", "hidden")
    return bool((dead[-1] >= share).any() or ((saturated[-1] >= share) & (hidden[-1] == 1)).any())


def first_update(run: Run) -> tuple[float, float]:
    """Its length, and that of all weights after it; NaN where none was measured."""
    measured = run.table("scalars", ["update_norm", "weight_norm"]).dropna().to_numpy(dtype=float)
    return (float(measured[0, 0]), float(measured[0, 1])) if len(measured) else (np.nan, np.nan)


def thrown_at_once(run: Run, *, far: float = 0.5) -> bool:
    """Whether the first update moved the weights by a good part of their size: what the first record shows of the units
    is then its work, not the initialization's."""
    moved, length = first_update(run)
    return moved >= far * length


def counts_errors(run: Run) -> bool:
    """Whether a function with derivative zero lies between the model's output and the loss, as far as was seen."""
    path = loss_calls(run)
    functions = [function for name, (function, _) in activations(run).items() if name.startswith("loss.")]
    return not HARD_THRESHOLDS.isdisjoint([*path, *functions])
