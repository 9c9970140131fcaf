r"""Saturated units.

## What it is
Hidden units stuck in the flat part of their activation function. Their derivative is close to zero on nearly all
data, so almost no gradient passes, and the weights before them move very slowly.

## What we look at
For each sigmoid or tanh layer with weights behind it, the share of units whose derivative is below 5 % of its
maximum on 95 % of the inputs, and the layer's mean derivative: weights far too large throw units from one flat
region to the other, and a mean below 5 % of the maximum passes as little (below 10 % in a layer that was so flat
before the first update). Gates of `nn.LSTM` and `nn.GRU` cannot be observed: the size of the inputs and of the weights
they meet tells. Other gates may be shut and be right, unless they let next to nothing through from the first update to
the last. It counts as a fault when it holds back learning: early in the run, or while the loss is still high. A softmax
inside the network, as of attention, that picked one entry before anything was learned is told as information. Whether
the inputs of the network or the weights make the arguments large gives the cause.

## Why it happens
In $\bar z_i = \bar h_i\,\phi'(z_i)$ the factor $\phi'(z_i)$ is at most $1/4$ for the logistic function and falls
like $e^{-|z|}$. With raw inputs of hundreds, or weights a hundred times too large, $|z|$ is far out in the flat
region for every example.

## What to try
Standardize the inputs, $\tilde x_j = (x_j - \mu_j)/\sigma_j$; initialize with Xavier's scale; or put batch
normalization before the activation.

## When this is wrong
Gates, attention weights and outputs that are confident because they are right saturate in good networks. Outputs and
softmax raise no alarm here, nor does saturation that comes while the loss reaches its floor. Under a loss that becomes
another one while training, as that of a critic whose returns grow with the policy, it is information.

## In the lecture
*Plateaux* ("saturated unit").
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._far_targets import scale_targets
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._flat_gates import flat_gates
from diagnostics.rules._flat_gates import remedies as of_recurrent
from diagnostics.rules._moving import is_moving
from diagnostics.rules._raw_inputs import follows, given, raw, standardize
from diagnostics.rules._sharp_softmax import sharp_from_start
from diagnostics.rules._shut_gates import shut_gates
from diagnostics.rules._words import counted, names_of, number, tex
from diagnostics.run import Run

KIND = "saturated-units"
RANK = 8

_SQUASHING = frozenset({"sigmoid", "tanh", "logsigmoid", "softsign", "hardsigmoid", "hardtanh"})


def check(
    run: Run,
    *,
    most: float = 0.5,  # of a layer's units
    flat: float = 0.05,  # mean derivative over its maximum: what makes one input of one unit flat, for all of them
    from_start: float = 0.1,  # the same, of a layer that is so flat from its first record on: twice as much
    began: float = 0.2,  # the same at the first record: outputs beyond 0.9 (logistic: 0.05 and 0.95) from the start
    early: float = 0.2,  # of the run: saturation that is there before anything was learned
    learned: float = 0.1,  # of the untrained loss: a run this far down is not held back
    nearly_all: float = 0.75,  # of the units: then it is the layers behind that have learned
    little: float = 0.02,  # of the untrained loss, in that case
) -> Iterator[Finding]:
    gates = flat_gates(KIND, run) or shut_gates(KIND, run)
    if gates is not None:
        yield gates
        if gates.alarm or run.table("units", ["step"]).empty:
            return
    sharp = sharp_from_start(KIND, run, signals.loss(run))
    if sharp is not None:
        yield sharp
    steps, names, saturated = by_layer.matrix(run, "units", "saturated_fraction")
    hidden = _hidden(run, names)
    known = ~np.isnan(saturated)
    if gates is None and sharp is None and not known[:, hidden].any():
        raise signals.Missing(
            "units.saturated_fraction: no hidden sigmoid or tanh activation was seen with 300 inputs a unit"
        )
    _, _, slopes = by_layer.matrix(run, "units", "derivative")
    limits = np.where(slopes[0] <= from_start, from_start, flat)
    # the mean over units and inputs is known before there are inputs enough to tell of each unit
    stuck = np.where(known, (saturated >= most) | (slopes <= limits), np.where(slopes <= limits, 1.0, np.nan))
    now = {at: float(saturated[known[:, at], at][-1]) for at in hidden if known[:, at].any()}
    bad = [at for at in now if stuck[known[:, at], at][-1]]
    if not bad:
        return
    history = signals.loss(run)
    worst = max(bad, key=lambda at: now[at])
    if signals.has_learned(run, learned if now[worst] < nearly_all else little):
        return
    held = np.flatnonzero(stuck[:, worst] == 1)
    first = int(steps[held[0]])
    lived = (first - history.steps[0]) / max(1, history.count)
    reached = signals.level(history.values[(history.steps <= first) & (history.steps > first - history.window)])
    if lived > early and history.start - reached > 0.5 * (history.start - history.best):
        return  # came with learning, after most of it
    cause = _cause(run, names[worst], slopes[:, worst], began)
    layers = tuple(names[at] for at in bad)
    function, units = by_layer.activations(run)[names[worst]]
    all_units = counted(units, f"{function} unit")
    slope = _derivative(run, worst)
    yield Finding(
        kind=KIND,
        cause=cause,
        severity="info" if is_moving(run) else "critical" if now[worst] >= 0.9 else "warning",
        first_step=first,
        last_step=None,
        layers=layers,
        summary=(
            f"{number(100 * now[worst])} % of the {all_units} of layer {names[worst]} are "
            f"saturated since step {first}: their derivative is below 5 % of its maximum on nearly all data"
            if now[worst] >= most
            else f"The {all_units} of layer {names[worst]} are in their flat regions for nearly all data "
            f"since step {first}: their mean derivative is {number(100 * slope)} % of its maximum"
        )
        + (f" (also {names_of([names[at] for at in bad if at != worst])})." if len(bad) > 1 else "."),
        evidence={"saturated fraction": now[worst], "mean derivative over maximum": slope, "layers": float(len(bad))},
        remedies=_remedies(run, cause, names[worst], first),
        charts=(
            Chart("line", "units", ("saturated_fraction",), "Share of saturated units", layers=layers)
            if now[worst] >= most
            else Chart("line", "units", ("derivative",), "Mean derivative over its maximum", layers=layers),
            LOG_LOSS,
        ),
        formula=(
            rf"\bar{{z}}_i = \bar{{h}}_i\,\phi'(z_i), \quad \overline{{\phi'(z)}} \approx "
            rf"{tex(slope)}\,\phi'_{{\max}}"
        ),
    )


def _hidden(run: Run, names: list[str]) -> list[int]:
    """Squashing activations with a weight matrix behind them, as seen in a forward or by the order of the modules; the
    loss's own and attention's are not hidden units."""
    functions = by_layer.activations(run)
    order = [each["name"] for each in run.meta["modules"]]
    weights = by_layer.with_matrix(run)
    last = max((order.index(name) for name in weights if name in order), default=-1)
    _, _, read_by_later = by_layer.matrix(run, "units", "hidden")
    hidden = []
    squashing = [
        at
        for at, name in enumerate(names)
        if functions.get(name, ("", 0))[0] in _SQUASHING and not name.startswith("loss.")
    ]
    for at in squashing:
        base = names[at].split("#")[0]
        placed = order.index(base) if base in order else None
        behind = placed < last if placed is not None else at != squashing[-1] or len(squashing) == 1
        behind |= bool((read_by_later[:, at] == 1).any())
        if behind and not any(word in names[at].lower() for word in ("gate", "attention", "attn")):
            hidden.append(at)
    return hidden


def _derivative(run: Run, at: int) -> float:
    _, _, values = run.matrix("units", "derivative")
    here = values[:, at][~np.isnan(values[:, at])]
    return float(here[-1]) if len(here) else np.nan


def _cause(run: Run, layer: str, slopes: np.ndarray, began: float) -> str:
    """`slopes`: mean derivative over its maximum at each record; where they began steep, updates flattened them."""
    known = slopes[~np.isnan(slopes)]
    if (len(known) and known[0] > began) or by_layer.thrown_at_once(run):
        return "large-step"
    return "input-scale" if raw(run) and follows(run, given(run).layer, layer) else "initialization"


def _remedies(run: Run, cause: str, layer: str, step: int) -> tuple[str, ...]:
    recurrent = {each["name"] for each in run.meta["modules"] if each["type"] == "RNN"}
    if (module := layer.split("#")[0].rpartition(".")[0]) in recurrent:
        return of_recurrent(run, cause, module or "model")
    xavier = f"initialize the layer before {layer} with torch.nn.init.xavier_normal_"
    normalize = f"put nn.BatchNorm1d or nn.LayerNorm before {layer}"
    if cause == "input-scale":
        return (standardize(run), normalize)
    if cause == "large-step":
        rate = optimizer.highest_rate(run, step)
        return (
            *scale_targets(run),
            f"lower the learning rate, {number(rate)} by step {step}, to {number(rate / 10)}, say, or warm it up",
            normalize,
        )
    return (xavier, normalize)


def explains(finding: Finding, other: Finding) -> bool:
    if "largest target" in other.evidence or other.cause == "double-softmax":
        return False  # a fault of the loss, which drives units to their ends
    flat = {"saddle-point", "plateau", "ravine", "lr-too-small", "local-minimum", "lr-oscillation"}
    if "deviation of the gates" in finding.evidence:
        flat |= {"zero-gradient"}  # where the derivatives underflow
    if other.kind == "lr-unstable" and other.last_step is not None:
        return finding.cause == "large-step"  # what is left of it
    return other.kind in flat and finding.evidence.get("saturated fraction", 0.0) >= 0.5
