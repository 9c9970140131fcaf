"""Whole modules that are copies of each other and stay so: what `symmetry` is for units, for experts, heads or critics.

Source: as of `symmetry`; seen in the norms alone. Two matrices of one shape whose weights, gradients and updates have
the same norm in every record are the same matrix: chance does not repeat itself in three numbers an update.
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import names_of
from diagnostics.run import Run

SAME = 1e-5  # relative: what sums in another order differ by; single precision has 1e-7


def copied(kind: str, run: Run, *, records: int = 2, most: float = 0.5) -> Iterator[Finding]:
    """`most`: share of all trained matrices from which on the copies are what there is of the model."""
    steps, names, weights = by_layer.matrix(run, "layers", "weight_norm")
    norms = [weights, *(by_layer.matrix(run, "layers", each)[2] for each in ("grad_norm", "update_norm"))]
    shapes = {each["name"]: tuple(each["shape"]) for each in run.meta.get("layers") or [] if not each.get("frozen")}
    # Biases that are added to the same sum, both from zero, are alike and harmless.
    matrices = [at for at, name in enumerate(names) if len(shapes.get(name, ())) > 1]
    moving = [at for at in matrices if all(np.nanmin(each[:, at], initial=np.inf) > 0 for each in norms)]
    if len(steps) < records:
        return
    classes: list[list[int]] = []
    for at in moving:
        for each in classes:
            if shapes[names[at]] == shapes[names[each[0]]] and all(_same(x[:, at], x[:, each[0]]) for x in norms):
                each.append(at)
                break
        else:
            classes.append([at])
    classes = [each for each in classes if len(each) > 1]
    if not classes:
        return
    several = [names[at] for each in classes for at in each]
    largest = tuple(names[at] for at in max(classes, key=len))
    yield Finding(
        kind=kind,
        cause="copied-modules",
        severity="critical" if len(several) >= most * len(moving) else "warning",
        first_step=int(steps[0]),
        last_step=None,
        layers=tuple(several),
        summary=(
            f"{names_of(largest)} are copies of each other: weights, gradients and updates are the same in all "
            f"{len(steps)} records, so {len(largest)} modules do the work of one."
        ),
        evidence={"copies": float(len(largest)), "weights that are copies": float(len(several))},
        remedies=(
            "give each module weights of its own: build it anew in place of copy.deepcopy, or call reset_parameters() "
            "on each copy",
            "or, where all must start from one trained module, add noise of a hundredth of the weights' deviation",
        ),
        charts=(Chart("line", "layers", ("grad_norm",), "Gradient norm of each copy", layers=largest, log=True),),
        formula=r"\mathbf{W}_i = \mathbf{W}_j,\; \nabla_{\mathbf{W}_i}\mathcal{J} = \nabla_{\mathbf{W}_j}\mathcal{J} "
        r"\;\Rightarrow\; \mathbf{W}_i = \mathbf{W}_j \text{ after the update}",
    )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, rtol=SAME, atol=0, equal_nan=True))
