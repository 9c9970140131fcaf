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
    zeros, heard = given_zeros(run), by_layer.matrices(run) - set(_always_zero(run, "grad_norm"))
    begun = tuple(name for name in zeros if _other_direction(name) in heard)
    if rest := tuple(name for name in zeros if name not in begun):
        yield _zeros(run, rest)
    if begun:
        yield _read_at_start(run, begun)


def _zeros(run: Run, weights: tuple[str, ...]) -> Finding:
    biases = tuple(_bias_of(name) for name in weights)
    one, one_step = len(weights) == 1, all("weight_hh" in name for name in weights)
    return found(
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
        chart=_gradients(*weights, *biases),
    )


def _read_at_start(run: Run, weights: tuple[str, ...]) -> Finding:
    """Of one direction of a recurrent net that runs in both."""
    reverse = weights[0].endswith(_REVERSE)
    name, place = ("reverse", "last") if reverse else ("forward", "first")
    state = r"\overleftarrow{\mathbf{h}}_T" if reverse else r"\overrightarrow{\mathbf{h}}_1"
    return found(
        "read-at-start",
        run,
        (
            f"The {name} direction is read where it starts: at the {place} place of a sequence it has seen the {place} "
            f"input and nothing else. {names_of(weights)}, by which it would remember, never got a gradient."
        ),
        (
            "take the end of each direction: of _, h = gru(x), or _, (h, _) = lstm(x), torch.cat([h[-2], h[-1]], 1) "
            f"in place of y[:, {-1 if reverse else 0}]",
            "or the mean over time, y.mean(1) with batch_first; or leave bidirectional=True out",
        ),
        evidence={"weights": float(len(weights))},
        layers=weights,
        formula=rf"{state} = f(\mathbf{{x}}_{'T' if reverse else '1'}, \mathbf{{0}})",
        severity=unless_it_learns(run, "warning"),
        chart=_gradients(*weights, *map(_other_direction, weights)),
    )


_REVERSE = "_reverse"
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


def _gradients(*names: str) -> Chart:
    return Chart("line", "layers", ("grad_norm",), "Gradient norm of each tensor", layers=names, log=True)


def _other_direction(name: str) -> str:
    """Of a recurrent net's weight, for its states; empty for any other."""
    if "weight_hh" not in name:
        return ""
    return name.removesuffix(_REVERSE) if name.endswith(_REVERSE) else name + _REVERSE


def _always_zero(run: Run, column: str) -> list[str]:
    """Trainable weight matrices of which this column is exactly 0 in every record."""
    _, names, norms = by_layer.matrix(run, "layers", column)
    frozen = {name for name, each in by_layer.described(run).items() if each.get("frozen")}
    trained = by_layer.matrices(run) - frozen
    return [name for name, values in zip(names, norms.T, strict=True) if name in trained and (values == 0).all()]


def _bias_of(name: str) -> str:
    module, dot, weight = name.rpartition(".")
    return module + dot + weight.replace("weight", "bias", 1)
