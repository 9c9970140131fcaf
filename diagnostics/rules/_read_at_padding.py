"""A recurrent layer that is given zeros where its answer is read: the padding behind each sequence.

Source: lecture, recap of the last lecture ("Jacobian close to zero"): a chain of factors below one, here through time.
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _raw_inputs as raw_inputs
from diagnostics.rules import _stretches as stretches
from diagnostics.rules._charts import LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run

_INPUTS, _BIAS = ".weight_ih_l0", ".bias_ih_l0"


def read_at_padding(
    kind: str,
    run: Run,
    stretch: stretches.Flat,
    *,
    nothing: float = 1e-3,  # of an input's length: a thousand such steps weigh as much as one
) -> Finding | None:
    """From the gradients of the weights that meet its inputs, the sum over time of z-bar x, and of the bias, the sum of
    z-bar: their ratio is the length of the inputs at the times that count."""
    for name, described in by_layer.described(run).items():
        if name.endswith(_INPUTS) and len(described["shape"]) == 2:
            layer = name.removesuffix(_INPUTS)
            length, usual = _length_that_counts(run, layer, stretch), _usual_length(run, described["shape"][1])
            if length <= nothing * usual:
                return _finding(kind, stretch, layer, length, usual)
    return None


def _length_that_counts(run: Run, layer: str, stretch: stretches.Flat) -> float:
    steps, names, norms = by_layer.matrix(run, "layers", "grad_norm")
    inside = stretch.holds(steps)
    if layer + _BIAS not in names or not inside.any():
        return np.nan
    weights, bias = (norms[inside, names.index(layer + end)] for end in (_INPUTS, _BIAS))
    known = bias > 0
    return float(np.median(weights[known] / bias[known])) if known.any() else np.nan


def _usual_length(run: Run, features: int) -> float:
    """Of an input: a row of the embedding before it, or of the data; NaN if neither is known."""
    length, seen = raw_inputs.first_length(run)
    if seen == features:
        return length
    tables = [each for each in by_layer.described(run).values() if each.get("module") == "Embedding"]
    fitting = [each for each in tables if len(each["shape"]) == 2 and each["shape"][1] == features]
    _, names, norms = by_layer.matrix(run, "layers", "weight_norm")
    if len(fitting) != 1 or fitting[0]["name"] not in names:
        return np.nan
    return float(norms[0, names.index(fitting[0]["name"])]) / np.sqrt(fitting[0]["shape"][0])


def _finding(kind: str, stretch: stretches.Flat, layer: str, length: float, usual: float) -> Finding:
    return stretch.finding(
        kind,
        "read-at-padding",
        (layer,),
        f"{layer} is given zeros at the steps that its answer depends on, as if it were read behind the padding: by "
        f"its gradients, the inputs that count are {number(length)} long, where an input is {number(usual)} long. What "
        f"came before them has faded, and the loss {stretch.stood}.",
        {"length of the inputs that count": length, "length of an input": usual, "loss": stretch.level},
        (
            "read each sequence's own last step: out[torch.arange(len(out)), lengths - 1], or the h_n of a sequence "
            "packed by nn.utils.rnn.pack_padded_sequence(x, lengths, ...)",
            "or pad in front of the sequences, or take the mean or the maximum over the steps that are no padding",
        ),
        (
            Chart(
                "line",
                "layers",
                ("grad_norm",),
                "Gradient norm of each tensor",
                (layer + _INPUTS, layer + _BIAS),
                log=True,
            ),
            LOSS,
        ),
        r"\|\nabla_W\| / \|\nabla_b\| = \|\sum_t \bar{z}_t x_t^\top\| / \|\sum_t \bar{z}_t\| \approx \|x\|",
    )
