"""Gates that let nothing through, from the first update to the last.

Source: lecture, "Plateaux" (saturated units); Srivastava et al. 2015, "Highway Networks", 2.2: gates that begin at a
bias of -1 to -4 are shut for most inputs, and open where it helps.
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import names_of, number, tex
from diagnostics.run import Run


def shut_gates(
    kind: str,
    run: Run,
    *,
    shut: float = 1e-3,  # on average over units and inputs: a bias of -7, where -4 is the least that is in use
    records: int = 3,
    updates: int = 100,  # a gate that opens takes some
    learned: float = 0.1,  # of the untrained loss: a run this far down is not held back
) -> Finding | None:
    steps, names, means = by_layer.matrix(run, "units", "mean")
    _, _, slopes = by_layer.matrix(run, "units", "derivative")
    _, _, hidden = by_layer.matrix(run, "units", "hidden")  # not the rare object that a detector's output may hold
    kinds = {name: kind for name, (kind, _) in by_layer.activations(run).items()}
    gates = [at for at, name in enumerate(names) if kinds.get(name) == "gate" and (hidden[:, at] == 1).any()]
    if not gates or len(steps) < records or signals.total(run) < updates:
        return None
    closed = [at for at in gates if (means[:, at] <= shut).all()]  # NaN where it was not called: it may be open then
    if not closed:
        return None
    layers, few = tuple(names[at] for at in closed), len(closed) == 1
    slope, mean = float(np.median(slopes[-1, closed])), float(means[-1, closed].mean())
    history = signals.loss(run)
    return Finding(
        kind=kind,
        cause="initialization",
        severity="info" if signals.has_learned(run, learned) else "warning",
        first_step=history.first_step,
        last_step=None,
        layers=layers,
        summary=(
            f"From the first update to the last {'a gate lets' if few else f'{len(closed)} gates let'} through "
            f"{number(100 * mean)} % of what {'it is' if few else 'they are'} given: {names_of(layers)}. Their "
            f"mean derivative is {number(100 * slope)} % of its maximum: neither they nor what they shut off learn."
        ),
        evidence={"saturated fraction": 1.0, "mean derivative over maximum": slope, "let through": mean},
        remedies=(
            "start the gates farther open: a bias of -2 lets 12 % through, and -1 to -4 are usual, as "
            "torch.nn.init.constant_(gate.bias, -2.0)",
            "or, for a layer that is to begin as nothing, start a factor behind it at 0, whose derivative is not",
        ),
        charts=(
            Chart("line", "units", ("mean",), "What the gates let through", layers=layers, log=True),
            LOSS,
        ),
        formula=(
            rf"\bar{{z}}_i = \bar{{h}}_i\,\phi'(z_i), \quad \overline{{\phi'(z)}} \approx "
            rf"{tex(slope)}\,\phi'_{{\max}}"
        ),
    )
