r"""Identical hidden units that stay identical.

## What it is
Two or more hidden units of a layer have the same incoming *and* the same outgoing weights. They compute the same
thing, get the same gradient, and after every update they are still the same: the layer has fewer units than it
was given.

## What we look at
For each hidden layer, the number of distinct units: classes of (incoming weights, bias, outgoing weights) that
agree up to sign within one part in ten thousand; and whether a layer whose units all began within one percent of
a few keeps them there for a good part of the run. Units that agree in only one of the two separate by themselves
and are not reported. In attention the units are the channels of the values, compared within a head (two heads sum
over time with weights of their own), and whole heads. A recurrent unit is read by its own layer, too. A unit of a gated
linear unit is a product, and has the incoming weights of both its factors. The outputs of the last layer are compared
by their weights alone, and count where each has a twin, as the components of a mixture that start from 0. The
components that a module's own parameters hold, such as means and scales of a mixture, states or learned queries, are
one where all parameters with a dimension of their number are the same along it, and their gradients. Matrices that
began as zeros and get exactly no gradient, two and more, are factors of one product, and each stays as it is. Whole
modules side by side, such as experts or critics, are copies where their weights, gradients and updates have the same
norms in every record.

## Why it happens
If $\mathbf w_i = \mathbf w_j$ and $v_i = v_j$, then $\partial\mathcal J/\partial\mathbf w_i = \partial\mathcal
J/\partial\mathbf w_j$ and $\partial\mathcal J/\partial v_i = \partial\mathcal J/\partial v_j$, so
$$\mathbf w_i - \alpha\,\nabla_{\mathbf w_i}\mathcal J = \mathbf w_j - \alpha\,\nabla_{\mathbf w_j}\mathcal J,$$
and by induction they remain equal. The symmetric point is a saddle: perturbed slightly, the units move apart, but
exact gradients never leave it. All weights zero is the special case everybody meets. Modules made with
`copy.deepcopy` and used side by side are the same at the scale of a module, and a gate between them gets no gradient.

## What to try
Break the symmetry with small random values: the default initialization of the layer, or Kaiming or Xavier. For
cloned units, add noise to one of each pair.

## When this is wrong
Zero-initialized output layers, residual scales and low-rank adapters are fine and silent: there the other side of the
unit differs. A pair among many that agrees to a part in a thousand, not in ten thousand, is left out: the two separate,
slowly. Channels of queries and keys are not compared, nor values whose way to the output projection is not made of
views (copied key-value heads, batch and heads merged into one dimension), nor recurrent cells called by hand or whose
two directions are read together. Less than a hundredth of the units is information: pruning leaves some at 0. So is
less than half of units that began apart: weights that are clamped end at their bounds.

## In the lecture
*Saddle points* ("don't initialize all your weights to zero!") and *Local Minima* (permutation symmetries).
"""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._copies import copied
from diagnostics.rules._finding import Chart, Finding, Severity
from diagnostics.rules._zero_factors import stuck_at_zero
from diagnostics.run import Run

KIND = "symmetry"
RANK = 5


def check(
    run: Run,
    *,
    records: int = 2,  # identical again after an update: chance does not repeat itself to a part in ten thousand
    lasting: float = 0.2,  # of the records, if the units came apart in the end: time lost at the symmetric saddle
    nearly: float = 0.1,  # of the run, where a whole layer began within a percent: no chance makes that
    few: float = 0.25,  # of the units: so few that differ by a percent make a far smaller layer
) -> Iterator[Finding]:
    others = list(stuck_at_zero(KIND, run)) or list(copied(KIND, run))
    try:
        found = list(_units(run, records, lasting, nearly, few))
    except signals.Missing:
        found = []
        if not others:
            raise
    yield from found or others


def _units(run: Run, records: int, lasting: float, nearly: float, few: float) -> Iterator[Finding]:
    steps, names, distinct = by_layer.matrix(run, "symmetry", "distinct_units")
    _, _, units = by_layer.matrix(run, "symmetry", "units")
    groups = np.nan_to_num(by_layer.matrix(run, "symmetry", "groups")[2], nan=1)
    if len(steps) < records:
        raise signals.Missing(f"symmetry: {len(steps)} records, {records} needed")
    same = (distinct < units) & (units >= 2) & ~_vanished(run, steps, names)
    spans = [_span(same[:, at]) for at in range(len(names))]
    long_enough = max(records, lasting * len(steps))
    stuck = [at for at, (_, count, ended) in enumerate(spans) if count >= (long_enough if ended else records)]
    if not stuck:
        yield from _nearly(run, steps, names, units, groups, nearly, few)
        return
    by_cause: dict[str, list[int]] = {}
    for at in stuck:
        several = bool(distinct[spans[at][0], at] > groups[spans[at][0], at])
        by_cause.setdefault(_cause(run, names[at], several), []).append(at)
    # one fault, one alarm: the cause that holds the most units speaks for all
    alike = units - distinct
    cause = max(by_cause, key=lambda each: sum(alike[spans[at][0], at] for at in by_cause[each]))
    worst = max(stuck, key=lambda at: alike[spans[at][0], at] / units[spans[at][0], at])
    begin, lasted, ended = spans[worst]
    first, last = int(steps[begin]), int(steps[begin + lasted - 1])
    count, kept, least = (int(table[begin + lasted - 1, worst]) for table in (units, distinct, groups))
    layers = tuple(names[at] for at in stuck)
    until = f"stayed identical until step {last}" if ended else "stay identical"
    yield Finding(
        kind=KIND,
        cause=cause,
        severity=_severity(kept, count, least, ended, begin > 0 and distinct[0, worst] == count),
        first_step=first,
        last_step=last if ended else None,
        layers=layers,
        summary=f"{_only(run, names[worst], kept, count)} {until}.",
        evidence={
            "units": float(count),
            "distinct units": float(kept),
            "least possible": float(least),
            "layers": float(len(stuck)),
        },
        remedies=_remedies(cause, names[worst], "normal_" if _is_embedding(run, names[worst]) else "kaiming_normal_"),
        charts=(
            Chart(
                "line", "symmetry", ("distinct_units", "units"), "Distinct units of the layer", layers=(names[worst],)
            ),
        ),
        formula=r"\mathbf{w}_i = \mathbf{w}_j,\; v_i = v_j \;\Rightarrow\; \nabla_{\mathbf{w}_i}\mathcal{J} = "
        r"\nabla_{\mathbf{w}_j}\mathcal{J},\; "
        rf"\text{{so }} {count} \text{{ units act as }} {kept}",
    )


def _severity(kept: int, count: int, least: int, ended: bool, apart: bool, *, narrower: float = 0.99) -> Severity:
    """`narrower`: of the units. Those that began `apart` no gradient makes alike; bounds may, and leave most apart."""
    if kept <= max(least, count // 4) and not ended:
        return "critical"
    return "warning" if kept < (0.5 if apart else narrower) * count else "info"


def _only(run: Run, layer: str, kept: int, count: int) -> str:
    are = "is" if kept == 1 else "are"
    if _is_embedding(run, layer):
        same = "the others hold the same numbers and"
        return f"In embedding {layer} only {kept} of {count} dimensions {are} distinct: {same}"
    if _ends(layer) == "outputs":
        return (
            f"Of the {count} outputs of {_module(layer)} only {kept} {are} distinct: each has a twin with the same "
            "weights and gradient, since the loss treats them alike; they"
        )
    if _ends(layer) == "parts":
        return (
            f"Of the {count} parts of {_module(layer)} along its dimension of size {count} only {kept} {are} distinct: "
            "the others hold the same numbers and get the same gradient, as in every parameter with a dimension of "
            "this size, and"
        )
    return (
        f"In layer {layer} only {kept} of {count} {_units_of(layer)} {are} distinct: the others have identical "
        "incoming and outgoing weights and"
    )


def _units_of(layer: str) -> str:
    return "attention heads" if _ends(layer) == "heads" else "hidden units"


def _is_embedding(run: Run, layer: str) -> bool:
    return by_layer.type_of(run, layer) == "Embedding"


def _ends(layer: str) -> str:
    """Of what a module has: its weight, its attention heads or its outputs; of a parameter its parts."""
    return layer.split("#")[0].rpartition(".")[2]


def _module(layer: str) -> str:
    return layer.split("#")[0].rpartition(".")[0] or "the model"


def _vanished(run: Run, steps: np.ndarray, names: list[str], *, left: float = 0.01) -> np.ndarray:
    """(records, layers): where next to nothing is left of a layer's weights. What is alike there is rounding, and what
    took the weights away is the fault."""
    at, named, norms = run.matrix("layers", "weight_norm")
    known = [str(each) for each in named]
    gone = np.zeros((len(steps), len(names)), dtype=bool)
    for column, name in enumerate(names):
        if len(at) and name in known and norms[0, known.index(name)] > 0:
            own = norms[:, known.index(name)]
            gone[:, column] = np.interp(steps, at, own) <= left * own[0]
    return gone


def _span(same: np.ndarray) -> tuple[int, int, bool]:
    """First index, number of records and whether it ended, of the last stretch of identical units."""
    at = np.flatnonzero(same)
    if not len(at):
        return 0, 0, True
    gaps = np.flatnonzero(np.diff(at) > 1)
    begin = int(at[gaps[-1] + 1]) if len(gaps) else int(at[0])
    return begin, int(at[-1]) - begin + 1, bool(at[-1] < len(same) - 1)


def _nearly(
    run: Run, steps: np.ndarray, names: list[str], units: np.ndarray, groups: np.ndarray, lasting: float, few: float
) -> Iterator[Finding]:
    """A layer that began with all units within a percent of a few, and spent a good part of the run so."""
    _, _, alike = by_layer.matrix(run, "symmetry", "alike_units")
    close = (alike > 0) & (units - alike <= np.maximum(groups, few * units))
    began = np.flatnonzero(close[0])
    ends = [int(np.argmin(close[:, at])) or len(steps) for at in began]  # records until the units are apart
    history = signals.loss(run)
    spent = [(history.steps <= steps[end - 1]).mean() for end in ends]
    if not len(began) or max(spent) < lasting:
        return
    worst = int(np.argmax(spent))
    end, at = ends[worst], int(began[worst])
    ended = end < len(steps)
    layers = tuple(names[each] for each, share in zip(began, spent, strict=True) if share >= lasting)
    kept = int(units[0, at] - alike[0, at])
    yield Finding(
        kind=KIND,
        cause="constant-initialization",
        severity="warning",
        first_step=int(steps[0]),
        last_step=int(steps[end - 1]) if ended else None,
        layers=layers,
        summary=(
            f"The {int(units[0, at])} {_units_of(names[at])} of {names[at]} began less than one percent from "
            f"{'each other' if kept == 1 else f'one of {kept}'} in incoming and outgoing weights, and had not come "
            f"apart by step {int(steps[end - 1])} of {history.last_step}."
        ),
        evidence={
            "units": float(units[0, at]),
            "distinct units": float(kept),
            "least possible": float(groups[0, at]),
            "layers": float(len(layers)),
        },
        remedies=_remedies("constant-initialization", names[at]),
        charts=(
            Chart("line", "symmetry", ("alike_units", "units"), "Units within one percent of another", layers=layers),
        ),
        formula=r"\mathbf{w}_i \approx \mathbf{w}_j,\; v_i \approx v_j \;\Rightarrow\; "
        r"\nabla_{\mathbf{w}_i}\mathcal{J} \approx \nabla_{\mathbf{w}_j}\mathcal{J}",
    )


def _cause(run: Run, layer: str, several: bool) -> str:
    """Zero if the first update made all there is of the weights; constant if all units (of a head) are one."""
    if several:
        return "cloned-units"
    layer, of = layer.split("#")[0], layer.split("#")[0].rpartition(".")[0]
    layer = {"outputs": f"{of}.weight".removeprefix("."), "parts": of}.get(_ends(layer), layer)
    _, names, weights = by_layer.matrix(run, "layers", "weight_norm")
    _, _, updates = by_layer.matrix(run, "layers", "update_norm")
    own = [at for at, name in enumerate(names) if name == layer or (name.startswith(f"{layer}.") and "weight" in name)]
    started = all(weights[0, at] <= 1.001 * updates[0, at] or weights[0, at] == 0 for at in own)
    return "zero-initialization" if own and started else "constant-initialization"


def _remedies(cause: str, layer: str, how: str = "kaiming_normal_") -> tuple[str, ...]:
    if cause == "cloned-units":
        return (
            f"re-initialize the copies in {layer}: torch.nn.init.{how} on their rows",
            "or add noise of a hundredth of the weights' deviation to one unit of each pair",
        )
    if _ends(layer) == "parts":
        return (
            f"start the parts of {_module(layer)} apart from each other: torch.nn.init.normal_({_module(layer)})",
            "or, as of the components of a mixture, each at another example of the data",
        )
    if _ends(layer) == "outputs":
        return (
            f"start {_module(layer)} with small random weights: torch.nn.init.normal_(layer.weight, std=0.02)",
            "and give outputs that stand side by side, as the means of a mixture, different biases",
        )
    what = f"queries, keys and values of all {layer}" if _ends(layer) == "heads" else layer
    return (
        f"initialize {what} with small random values: torch.nn.init.{how}(layer.weight)",
        "or leave out the line that sets the weights: PyTorch's default initialization breaks the symmetry",
    )


def explains(finding: Finding, other: Finding) -> bool:
    """A layer of one unit makes dead, flat and slow runs; one cloned pair does not."""
    if finding.cause == "copied-modules":
        return other.kind in {"zero-gradient", "plateau"}
    if "distinct units" not in finding.evidence:  # what else there is learns what it can
        return other.kind in {"zero-gradient", "saddle-point", "plateau", "local-minimum", "lr-too-small"}
    if finding.evidence["distinct units"] > max(finding.evidence["least possible"], 0.25 * finding.evidence["units"]):
        return False
    if other.kind == "lr-unstable":  # an early spike that such a layer could not come back from; no divergence
        return other.evidence.get("loss at end", np.inf) <= 1.1 * other.evidence.get("loss at start", 0.0)
    return other.kind in {
        "zero-gradient",
        "dead-units",
        "saturated-units",
        "saddle-point",
        "plateau",
        "ravine",
        "lr-too-small",
        "local-minimum",
        "lr-oscillation",
    }
