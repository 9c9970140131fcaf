"""Layers that are given nothing but zeros: what they should read is lost, or was never put in."""

from collections.abc import Iterator

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import names_of
from diagnostics.run import Run

LOST = 0.9  # share of dead or saturated units that by itself leaves zeros


def zero_inputs(run: Run, *, records: int = 3) -> Iterator[Finding]:
    """`records`: measured updates."""
    if len(run.matrix("layers", "grad_norm", copy=False)[0]) < records:
        return
    weights = given_zeros(run)
    if not weights:
        return
    biases = tuple(_bias_of(name) for name in weights)
    one, one_step = len(weights) == 1, all("weight_hh" in name for name in weights)
    yield found(
        "zero-inputs",
        run,
        (
            f"What {names_of(weights)} {'multiplies' if one else 'multiply'} is all zeros in every measured update: "
            f"the bias beside {'it' if one else 'each'} gets a gradient, and the weight exactly none."
        ),
        (_ONE_STEP,) if one_step else (_PLACEHOLDER,),
        evidence={"weights": float(len(weights))},
        layers=weights,
        formula=(
            r"\bar{\mathbf{W}} = \bar{\mathbf{z}}\,\mathbf{x}^\top = 0 \text{ where } \mathbf{x} = 0, \qquad "
            r"\bar{\mathbf{b}} = \bar{\mathbf{z}}"
        ),
        severity=unless_it_learns(run, "warning" if one_step else "critical"),
        chart=Chart(
            "line", "layers", ("grad_norm",), "Gradient norm of each tensor", layers=(*weights, *biases), log=True
        ),
    )


_ONE_STEP = "give it sequences of more than one step, or keep its state from call to call"
_PLACEHOLDER = (
    "print what the layer is given: zeros that hold the place of data, a mask or a scale that is 0, integers from a "
    "division that rounds down"
)


def given_zeros(run: Run) -> tuple[str, ...]:
    """Weight matrices that never got a gradient though the bias added to their product did, unless units before them
    are off, or weights that stay zero."""
    hard = [function for function, _ in by_layer.activations(run).values() if function in by_layer.HARD_THRESHOLDS]
    if hard or by_layer.has_lost_layer(run, LOST) or _always_zero(run, "weight_norm"):
        return ()
    _, names, norms = by_layer.matrix(run, "layers", "grad_norm")
    moved = {name for name, column in zip(names, norms.T, strict=True) if (column > 0).any()}
    given = tuple(name for name in _always_zero(run, "grad_norm") if _bias_of(name) in moved)
    tuned = moved & by_layer.matrices(run)
    return given if tuned else ()  # where no matrix gets any it is biases that are tuned


def _always_zero(run: Run, column: str) -> list[str]:
    """Trainable weight matrices of which this column is exactly 0 in every record."""
    _, names, norms = by_layer.matrix(run, "layers", column)
    frozen = {name for name, each in by_layer.described(run).items() if each.get("frozen")}
    trained = by_layer.matrices(run) - frozen
    return [name for name, values in zip(names, norms.T, strict=True) if name in trained and (values == 0).all()]


def _bias_of(name: str) -> str:
    module, dot, weight = name.rpartition(".")
    return module + dot + weight.replace("weight", "bias", 1)
