r"""Dead units.

## What it is
A rectified unit whose input is negative on all data. Its output is always zero, so its weights get exactly no
gradient and it cannot come back by itself.

## What we look at
For each ReLU-like activation the share of *units* that were inactive on every one of the last 300 or more inputs
- not the share of zero entries, which is high in any sparse, healthy layer. When the units died, and whether
their inputs were pushed down by the bias or by the weights, gives the cause.

## Why it happens
From $\bar z_i = \bar h_i\,\phi'(z_i)$ and $\bar w_{ij} = \bar z_i x_j$: where $z_i < 0$ always, $\phi'(z_i) = 0$
always and the derivative of every incoming weight is exactly 0. One step that is too long can push a unit there
in a single update, as it will where inputs of hundreds multiply every step; so can a strongly negative bias,
weights of one sign on inputs of one sign, or inputs ten of their deviations from zero: $\mathbf w\cdot\mathbf x$ then
has the sign of $\mathbf w\cdot\boldsymbol\mu$ for all of them, and half of the units start off. One positive column
that outweighs the others does the same: each unit of the first layer is on for all inputs or for none.

## What to try
After a large step: a smaller learning rate or warm-up, and re-initialize the dead units. After a bad start:
biases at 0, Kaiming initialization. Leaky ReLU or GELU keeps a gradient on the negative side.

## When this is wrong
A few dead units in a run that trains well are normal and not reported; up to three quarters of a layer in a run whose
loss has come down by a third are `info`, unless the step that killed them sent the loss up by more than its start and
more than a twentieth of that is left: what is left of the layer learns, though without them it may have ended lower
still. So is a whole layer whose dead units are less than a tenth of the network's, as in one block of many, or that
steps have killed while seven tenths of the loss went: with shorter ones it may end no lower. So are the units of one
layer that died one by one, or began so, while a quarter of it or more is at work: that much learns, and what nothing is
learned by does not keep units alive. (Outputs that a cross-entropy takes for scores are told in any run, and be it one,
where the loss that is left is what such classes cost.) Units that died when a quarter of the run had gone by, at half
the rate or more, without anything learned are not why it learns nothing. Nor can a loss that becomes another one, as
where a policy decides what is seen and values are their own targets, tell what its units are good for: there up to
three quarters of a layer are `info` too. A unit that answers to one rare input in a thousand looks dead in a window of
300; the window bounds its firing rate below one percent, no more.

## In the lecture
*Plateaux* ("we call this a dead unit").
"""

import math
from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._dead_causes import NEARLY_ALL, cause_of
from diagnostics.rules._explained import nothing_until
from diagnostics.rules._far_off import BY_INPUTS, drowned
from diagnostics.rules._far_targets import scale_targets
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._moving import is_moving
from diagnostics.rules._raw_inputs import standardize
from diagnostics.rules._rolling import recent_median
from diagnostics.rules._vanishing import BY_A_STEP, is_of_a_vanished_signal
from diagnostics.rules._words import counted, names_of, number
from diagnostics.run import Run

KIND = "dead-units"
RANK = 7
_SAID = {
    "input-scale": " The inputs are not standardized: their size multiplies every step.",
    "uncentered-inputs": " The inputs lie to one side of zero: a unit fed by them is on for all or for none.",
}

_SCORES = (
    " The cross-entropy is given them as scores: those classes have a score of 0 whatever the input, which is a "
    "probability of 1/{} at most."
)


def check(
    run: Run,
    *,
    most: float = 0.5,  # of a layer's units: more inactive than active
    sudden: float = 0.25,  # of a layer's units within one interval; training kills units one by one
    nearly_all: float = NEARLY_ALL,  # of the units of a layer, in a run that learns all the same
    learned: float = 0.7,  # of the untrained loss: a run this far down learns through the units that are left
    most_learned: float = 0.3,  # the same, however few a step has left: there is no better rate to be had at once
    all_but: float = 0.05,  # of the untrained loss: whatever the steps did, a run this far down trains well
    part: float = 0.1,  # of all units: with fewer dead in one layer of many, a run that learns lacks nothing one sees
    chance: float = 0.05,  # that of a layer as narrow as many directions begin off, each with one half
) -> Iterator[Finding]:
    steps, names, dead = by_layer.dead_fractions(run)
    known = ~np.isnan(dead)
    if not known.any():
        raise signals.Missing("no ReLU, or other unit that can die, was seen on enough inputs (300) in this run")
    now = np.array([dead[known[:, at], at][-1] if known[:, at].any() else 0.0 for at in range(len(names))])
    jumped = np.array([_jump(dead[known[:, at], at]) for at in range(len(names))])
    lasting = (now > 0) & ~(dead[len(dead) // 2 :] == 0).any(0)
    classes = [int(at) for at in np.flatnonzero(lasting) if _are_missed(run, names[at], float(now[at]))]
    bad = [at for at in range(len(names)) if now[at] >= most or (jumped[at] >= sudden and now[at] >= sudden)]
    if not (bad := sorted({*bad, *classes})):
        return
    worst = max(bad, key=lambda at: now[at])
    history = signals.loss(run)
    first_at = _first(dead[:, worst], min(most, now[worst]))
    cause = cause_of(run, names[worst], int(steps[first_at]), dead[:, worst], jumped[worst], sudden)
    at_once = jumped[worst] >= sudden or by_layer.thrown_at_once(run)  # a target that moves raises a loss as well
    killed = cause in BY_A_STEP and at_once and now[worst] >= most and _towered(history, int(steps[first_at]))
    killed = killed and not signals.has_learned(run, all_but)
    layers = tuple(names[at] for at in bad)
    units = by_layer.activations(run).get(names[worst], ("", 0))[1]
    few = now[worst] >= nearly_all and _by_chance(units, round(now[worst] * units)) < chance
    few &= _of_all(run, names, now, worst) >= part
    few &= not (cause == "large-step" and signals.has_learned(run, most_learned))
    trains = signals.has_learned(run, learned) and not few and not killed
    left = now[worst] < nearly_all  # enough to learn by
    one_by_one = len(bad) == 1 and left and jumped[worst] < most and not killed
    one_by_one &= cause in {"large-step", "initialization", "bias"}  # not by what slows down the others as well
    gone_at = int(steps[_first(dead[:, worst], min(nearly_all, now[worst]))])  # by what is left one learns
    late = cause != "uncentered-inputs" and nothing_until(run, gone_at)  # such inputs were there from the start
    blameless = trains or one_by_one or late or (left and is_moving(run))
    scores = _are_scores(run, names[worst])
    blameless &= not scores  # each is a class
    yield Finding(
        kind=KIND,
        cause=cause,
        severity="info" if blameless else "critical" if now[worst] >= 0.9 else "warning",
        first_step=int(steps[first_at]),
        last_step=None,
        layers=layers,
        summary=(
            f"{number(100 * now[worst])} % of the {counted(units, 'unit')} of layer {names[worst]} are dead since step "
            f"{int(steps[first_at])}: inactive on every input, with {_gradient(run, names[worst])}"
        )
        + (f" (also {names_of([names[at] for at in bad if at != worst])})." if len(bad) > 1 else ".")
        + _SAID.get(cause, "")
        + (_SCORES.format(units) if scores else "")
        + (_raised(run, int(steps[first_at])) if cause == "large-step" else ""),
        evidence={
            "dead fraction": float(now[worst]),
            "dead fraction at first": float(dead[known[:, worst], worst][0]),
            "layers": float(len(bad)),
            "loss at end over start": history.end / history.start if history.start else np.nan,
            "partly active": _partly(run, names[worst], float(now[worst])),
        },
        remedies=_remedies(run, cause, names[worst], int(steps[first_at])),
        charts=(
            Chart("line", "units", ("dead_fraction",), "Share of dead units", layers=layers),
            LOG_LOSS,
        ),
        formula=(
            rf"z_i < 0 \text{{ on all data}} \Rightarrow \phi'(z_i) = 0 \Rightarrow \bar{{w}}_{{ij}} = "
            rf"\bar{{h}}_i\,\phi'(z_i)\,x_j = 0 \quad\text{{for }} {number(100 * now[worst])}\,\% \text{{ "
            r"of the units}"
        ),
    )


def _by_chance(units: int, dead: int) -> float:
    """Probability that so many of so few units, or more, are off if half of all are; 0 of a wide layer."""
    return sum(math.comb(units, count) for count in range(dead, units + 1)) / 2**units if 0 < units < 64 else 0.0


def _of_all(run: Run, names: list[str], now: np.ndarray, worst: int) -> float:
    """Share of all rectified units that are the dead ones of one layer; 1 of one narrower than most: all must pass it.
    One module called again has the same units."""
    layers = {name.split("#")[0]: by_layer.activations(run)[name][1] for name in names}
    units = by_layer.activations(run)[names[worst]][1]
    every = sum(layers.values())
    return float(now[worst] * units / every) if every and units >= np.median(list(layers.values())) else 1.0


def _partly(run: Run, layer: str, dead: float) -> float:
    """Share of zero outputs that are not those of dead units. Where there are none the other units are on for every
    input: nothing of the inputs reaches the layer."""
    _, names, zeros = by_layer.matrix(run, "units", "zero_fraction")
    return float(zeros[-1, names.index(layer)]) - dead


def _jump(dead: np.ndarray) -> float:
    """Largest rise between two successive records."""
    return float(np.diff(dead).max()) if len(dead) > 1 else 0.0


def _towered(history: signals.Loss, step: int) -> bool:
    """Whether the loss rose by more than its start above the best until then, up to a step: no step of a training. One
    value alone may be a batch of a heavy tail."""
    values = recent_median(history.values[history.steps <= step], 3)
    return bool((values - np.fmin.accumulate(values) > abs(history.start)).any())


def _first(dead: np.ndarray, at_least: float) -> int:
    """Index since which the share has stayed at or above the level."""
    below = np.flatnonzero(~(dead >= at_least))
    known = np.flatnonzero(~np.isnan(dead))
    below = below[np.isin(below, known)]
    start = int(below[-1]) + 1 if len(below) else int(known[0])
    return min(start, len(dead) - 1)


def _raised(run: Run, step: int, *, times: float = 10.0) -> str:
    """What a schedule had done by then."""
    steps, rates = optimizer.learning_rates(run)
    highest = optimizer.highest_rate(run, step)
    if not len(rates) or not highest >= times * rates[0] > 0:
        return ""
    last = f", and to {number(rates[-1])} since" if rates[-1] > rates[steps <= step].max() else ""
    return f" The schedule had raised the rate from {number(rates[0])} to {number(highest)}{last}."


def _less_dropout(run: Run, *, much: float = 0.8) -> tuple[str, ...]:
    """What is kept is divided by 1 - p, and so is its gradient."""
    p = float(run.meta["dropout"])
    if not much <= p < 1:
        return ()
    times = number(1 / (1 - p))
    return (
        f"drop less: dropout of {number(p)} makes what it keeps, and its gradient, {times} times as large; p is the "
        "share that is set to 0, not the share that is kept",
    )


def _gradient(run: Run, layer: str) -> str:
    function, _ = by_layer.activations(run)[layer]
    return "gradient exactly 0" if function in by_layer.RECTIFIERS else "less than 1 % of the gradient passed on"


def _is_output(run: Run, layer: str) -> bool:
    _, names, hidden = by_layer.matrix(run, "units", "hidden")
    return bool(hidden[-1, names.index(layer)] == 0)


def _are_scores(run: Run, layer: str) -> bool:
    return _is_output(run, layer) and "relu -> cross_entropy" in signals.loss_path(run)


def _are_missed(run: Run, layer: str, dead: float, *, part: float = 0.5) -> bool:
    """Whether a layer gives scores, some of them 0 for all inputs, and examples of those classes come: with C classes,
    all of whose scores are 0 or more, each costs log C or more. `part` of that, were all classes as frequent, is left
    of the loss; classes that no target is of cost nothing."""
    if not _are_scores(run, layer):
        return False
    units = by_layer.activations(run)[layer][1]
    return units > 1 and signals.loss(run).end >= part * dead * math.log(units)


def _remedies(run: Run, cause: str, layer: str, step: int) -> tuple[str, ...]:
    rate = optimizer.highest_rate(run, step)
    if _is_output(run, layer):
        return (
            f"leave the activation {layer} out: no weights follow it, and an output must be able to take every value "
            "that a target has",
            f"or lower the learning rate, {number(rate)} by step {step}, to {number(rate / 10)}",
        )
    leaky = "use nn.LeakyReLU(0.01) or nn.GELU there, which keep a gradient on the negative side"
    if cause == "input-scale":
        return (standardize(run), f"or lower the learning rate, {number(rate)} by step {step}, a hundredfold or more")
    if cause == "uncentered-inputs":
        return (standardize(run), f"or put nn.BatchNorm1d before {layer}")
    if cause == "large-step":
        return (
            *scale_targets(run),
            *_less_dropout(run),
            f"lower the learning rate, {number(rate)} by step {step}, to {number(rate / 10)}, say, or warm it up",
            "clip gradients: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
            f"re-initialize the dead units of {layer}; they will not come back",
        )
    if cause == "bias":
        return (f"start the biases before {layer} at 0: torch.nn.init.zeros_(layer.bias)", leaky)
    return (
        f"initialize the layer before {layer} with torch.nn.init.kaiming_normal_",
        "centre its inputs to zero mean",
        leaky,
    )


def explains(finding: Finding, other: Finding) -> bool:
    """All units dead explain a flat loss; a tenth of them does not."""
    flat = {"zero-gradient", "saddle-point", "plateau", "ravine", "lr-too-small", "local-minimum", "lr-oscillation"}
    if other.cause in {"double-softmax", "weight-decay"} or (drowned(other) and finding.cause in BY_INPUTS):
        return False
    if other.evidence.keys() & {"largest target", "length of an input"}:
        return False
    if other.cause == "vanishing-gradient" and is_of_a_vanished_signal(finding):
        return False
    if other.kind == "lr-unstable" and other.last_step is not None:
        return finding.cause in BY_A_STEP  # what is left of it
    if other.kind == "lr-unstable":  # the ruins of a layer are steep; a rate that killed it came before
        later = other.first_step > finding.first_step and "first non-finite step" not in other.evidence
        return later and finding.evidence["dead fraction"] >= 0.9
    if other.cause == "momentum" and finding.cause in BY_A_STEP and other.first_step < finding.first_step:
        return False  # its swings came before
    by_inputs = finding.cause in BY_INPUTS  # which slow down what is left of it as well
    most = 0.75 if other.kind == "lr-too-small" and not by_inputs else 0.5  # half a layer learns at half its pace
    return other.kind in flat and finding.evidence["dead fraction"] >= most
