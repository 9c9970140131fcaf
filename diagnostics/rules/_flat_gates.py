"""Gates and units of recurrent layers, where not observed, thrown flat by what they are given, or by weights.

Source: lecture, "Plateaux" (saturated units), for the units of `nn.LSTM`, `nn.GRU` and deeper layers of `nn.RNN`.
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _raw_inputs as raw_inputs
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

_FIRST = ".weight_ih_l0"


def flat_gates(kind: str, run: Run, *, flat: float = 0.05, learned: float = 0.5) -> Finding | None:
    """From the sizes of the inputs and of the weights they meet. z is about normal with deviation s, and the mean
    derivative of a logistic or tanh unit over its maximum is at most 4 / (s sqrt(2 pi)) then."""
    first = next(iter(run.meta["layers"]), {"name": "", "module": "", "shape": []})
    name, history = str(first["name"]), signals.loss(run)
    if not name.endswith(_FIRST) or first["module"] not in by_layer.RECURRENT:
        return None
    length, seen = raw_inputs.first_length(run)
    rows, features = first["shape"]
    _, names, norms = by_layer.matrix(run, "layers", "weight_norm")
    observed = any(each.startswith(f"{name.removesuffix(_FIRST)}.") for each in by_layer.activations(run))
    if seen != features or name not in names or observed:
        return None
    deviation = length / np.sqrt(rows * features) * float(norms[0, names.index(name)])
    slope = 4 / (deviation * np.sqrt(2 * np.pi)) if deviation > 0 else 1.0
    if not slope <= flat:
        return None
    layer, units = name.removesuffix(_FIRST), "units" if first["module"] == "RNN" else "gates"
    cause = _cause(run)
    return Finding(
        kind,
        cause,
        "info" if signals.has_learned(run, learned) else "warning",  # it gets along with them
        history.first_step,
        None,
        (layer,),
        f"The {units} of {layer} are saturated: {_said(run, cause)} them to about {number(deviation)} on either side, "
        f"where their mean derivative is {number(100 * slope)} % of its maximum. The loss ended at "
        f"{number(history.end)}, from {number(history.start)}.",
        {"saturated fraction": 1.0, "mean derivative over maximum": slope, "deviation of the gates": deviation},
        remedies(run, cause, layer),
        (
            LOSS,
            Chart("line", "layers", ("grad_norm",), "Gradient norm of each tensor", layers=(name,), log=True),
        ),
        (
            rf"\bar{{z}}_i = \bar{{h}}_i\,\phi'(z_i), \quad \overline{{\phi'(z)}} \approx "
            rf"{tex(slope)}\,\phi'_{{\max}}"
        ),
    )


def _cause(run: Run) -> str:
    if raw_inputs.raw(run):
        return "input-scale"
    return "large-step" if by_layer.thrown_at_once(run) else "initialization"


def _said(run: Run, cause: str) -> str:
    if cause == "input-scale":
        return "the inputs throw"
    if cause == "initialization":
        return "the weights begin so large that they throw"
    _, norms = signals.column(run, "grad_norm")
    return f"the first update, from a gradient of norm {number(norms[0])}, made weights that throw"


def remedies(run: Run, cause: str, layer: str) -> tuple[str, ...]:
    """Of a recurrent layer, by its module's name."""
    if cause == "input-scale":
        return raw_inputs.standardize(run), f"or put nn.LayerNorm before {layer}"
    smaller = (
        f"begin with weights that let a state neither grow nor vanish: nn.init.orthogonal_({layer}.weight_hh_l0), or "
        "PyTorch's own"
    )
    if cause == "initialization":
        return (smaller,)
    return "clip the gradient's norm before each step: nn.utils.clip_grad_norm_(model.parameters(), 1.0)", smaller
