"""Whole modules that are copies of each other and stay so: what `symmetry` is for units, for experts, heads or critics.

Source: as of `symmetry`; seen in the norms alone. Two tensors whose weights, gradients and updates have the same norm
to the last bit in every record are the same: chance does not repeat itself in three numbers an update.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import names_of
from diagnostics.run import Run

Module = dict[str, bytes]  # name of each trained tensor inside -> shape and norms


def copied(kind: str, run: Run, *, records: int = 2, most: float = 0.5) -> Iterator[Finding]:
    """`most`: share of the trained weights from which on the copies are what there is of the model."""
    layers = {name: each for name, each in by_layer.described(run).items() if not each.get("frozen")}
    try:
        steps, norms = _norms(run, layers)
    except signals.Missing:
        return
    copies = _siblings(run, norms, layers) if len(steps) >= records else []
    if not copies:
        return
    largest = max(copies, key=len)
    tensors = tuple(name for name in norms if any(_inside(name, module) for each in copies for module in each))
    inside = [name for name in norms if any(_inside(name, module) for module in largest)]
    matrices = tuple(name for name in inside if _is_matrix(layers[name]))
    share = sum(layers[name]["parameters"] for name in tensors) / sum(layers[name]["parameters"] for name in norms)
    yield Finding(
        kind=kind,
        cause="copied-modules",
        severity="critical" if share >= most else "warning",
        first_step=int(steps[0]),
        last_step=None,
        layers=matrices,
        summary=(
            f"{names_of(largest)} are copies of each other: all their weights, gradients and updates are the same in "
            f"all {len(steps)} records, so {len(largest)} modules do the work of one."
        ),
        evidence={"copies": float(len(largest)), "share of the weights": share},
        remedies=(
            "give each module weights of its own: build it anew in place of copy.deepcopy, or call reset_parameters() "
            "on each copy",
            "or, where all must start from one trained module, add noise of a hundredth of the weights' deviation",
        ),
        charts=(Chart("line", "layers", ("grad_norm",), "Gradient norm of each copy", layers=matrices, log=True),),
        formula=r"\mathbf{W}_i = \mathbf{W}_j,\; \nabla_{\mathbf{W}_i}\mathcal{J} = \nabla_{\mathbf{W}_j}\mathcal{J} "
        r"\;\Rightarrow\; \mathbf{W}_i = \mathbf{W}_j \text{ after the update}",
    )


def _norms(run: Run, layers: dict[str, dict]) -> tuple[np.ndarray, Module]:
    """Of each trained tensor that had a gradient and moved in every record; where no two look the same at last, nothing
    more is read of a long run."""
    steps, names, weights = by_layer.matrix(run, "layers", "weight_norm")
    trained = [at for at, name in enumerate(names) if name in layers]
    looks = {(*layers[names[at]]["shape"], float(weights[-1, at])) for at in trained}
    if len(looks) == len(trained):
        return steps, {}
    others = [by_layer.matrix(run, "layers", each)[2] for each in ("grad_norm", "update_norm")]
    columns = np.stack([weights, *others])
    moving = np.all(columns[1:] > 0, axis=(0, 1))  # NaN, of what was not measured, is not
    return steps, {
        names[at]: str(layers[names[at]]["shape"]).encode() + columns[:, :, at].tobytes()
        for at in trained
        if moving[at]
    }


def _siblings(run: Run, norms: Module, layers: dict[str, dict]) -> list[tuple[str, ...]]:
    """Modules of one parent that hold the same, a matrix among it; not of a sequence, which stand behind each other."""
    types = {each["name"]: each["type"] for each in run.meta["modules"]}
    parts: dict[str, Module] = {}
    for name, norm in norms.items():
        path = name.split(".")
        for depth in range(1, len(path)):
            parts.setdefault(".".join(path[:depth]), {})[".".join(path[depth:])] = norm
    alike: dict[tuple, list[str]] = {}
    for module, inside in parts.items():
        parent = module.rpartition(".")[0]
        if types.get(parent) != "Sequential" and any(_is_matrix(layers[f"{module}.{name}"]) for name in inside):
            alike.setdefault((parent, *sorted(inside.items())), []).append(module)
    return [tuple(modules) for modules in alike.values() if len(modules) > 1]


def _inside(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _is_matrix(layer: dict) -> bool:
    """Biases that are added to one sum, all from zero, are alike and harmless."""
    return sum(size > 1 for size in layer["shape"]) > 1 and "bias" not in layer["name"]
