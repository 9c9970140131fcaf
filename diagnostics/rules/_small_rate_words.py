"""What is said of a learning rate that is too small once it is found: its sentence, evidence and remedies.

Source: lecture, "Learning Rate".
"""

from dataclasses import replace

import numpy as np

from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import CLIPPED, LOSS
from diagnostics.rules._far_targets import NEARER, how_far
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number
from diagnostics.run import Run

KIND = "lr-too-small"
_GIVE_A_RATE = ("give every parameter group a rate: print([group['lr'] for group in optimizer.param_groups])",)
_STABILITY = Chart(
    "stability", "curvature", ("stability",), "Stability ratio against this optimizer's limits", log=True
)
LATER = "lower the rate later: keep it at its highest, {}, until the loss stops falling"
GRADIENT_LEFT = ", hardly moving since the rate was lowered at step {} although the gradient has not gone."
FELL_BEFORE = (
    ", hardly moving since the rate was lowered at step {}. Until then it fell: it had arrived, or this stopped it."
)
_WATCHED = (
    "if a ReduceLROnPlateau did it, look at what it watches: mode='max' where larger is better, as of an accuracy, and "
    "a patience in epochs if it is called once an epoch"
)
_OFTEN = "look where scheduler.step() is called: once an epoch, if the schedule is meant for epochs"
SHORTER = "shorten the warm-up: the rate was still rising when the run ended, at {}"


def finding(
    run: Run,
    words: str,
    *,
    first: int | None = None,
    ratio: float = np.nan,
    overshoot: float = np.nan,
    cause: str = "learning-rate",
    remedy: str = "",
) -> Finding:
    """`words` end its sentence; since the update `first`, by default all along; `remedy`: of a schedule, with a place
    for its highest rate, without one the rate itself is to be raised."""
    history = signals.loss(run)
    highest = optimizer.highest_rate(run, history.last_step)
    rate = highest if cause == "learning-rate" else optimizer.last_rate(run)
    factor = min(10.0, 0.5 / ratio) if ratio > 0 else 10.0
    each = progress(run)
    slow, fast = limits.steps_for_tenfold(1 - min(each, 1)), limits.steps_for_tenfold(1 - min(each * factor, 1))
    start, end = number(history.start), number(history.end)
    moved = f"came from {start} to {end}" if start != end else f"stayed at {end}"
    return Finding(
        kind=KIND,
        cause=cause,
        severity="warning",
        first_step=history.first_step if first is None else first,
        last_step=None,
        layers=(),
        summary=(
            (
                f"The learning rate {number(rate)} is {number(100 * ratio)} % of the largest stable one"
                if np.isfinite(ratio) and rate > 0
                else f"At a learning rate of {number(rate)} the weights hardly move"
            )
            + f"; the loss {moved} in {history.count} updates{words}"
        ),
        evidence=({"stability ratio with noise": ratio} if np.isfinite(ratio) else {})
        | {
            "overshoot": overshoot,
            "learning rate": rate,
            "loss at start": history.start,
            "loss at end": history.end,
            "updates for a tenfold shrink now": slow,
            "updates for a tenfold shrink then": fast,
        },
        remedies=_GIVE_A_RATE
        if rate == 0 and not remedy
        else (
            remedy.format(number(highest)) or _raise(rate, ratio, factor),
            _or_else(run, remedy, slow, fast),
        ),
        charts=(
            *([_STABILITY] if np.isfinite(ratio) else []),
            LOSS,
            Chart("line", "scalars", ("lr",), "Learning rate", log=True),
        ),
        formula=limits.stability_formula(run, ratio - signals.noise_term(run), rate)
        if np.isfinite(ratio) and cause == "learning-rate"
        else "",
    )


def _or_else(run: Run, remedy: str, slow: float, fast: float) -> str:
    if np.isfinite(slow) and not remedy:
        return f"the steepest direction then shrinks tenfold in {number(fast)} instead of {number(slow)} updates"
    if remedy == LATER:
        return _WATCHED if _by_steps(run) else _OFTEN
    return "or find it by trial: the largest rate at which the loss of the first updates still falls"


def _by_steps(run: Run, *, least: int = 3) -> bool:
    """Whether the rate was multiplied by the same number again and again, and lasted in between."""
    rates = optimizer.learning_rates(run)[1]
    each, lasted = np.unique(rates[rates > 0], return_counts=True)
    factors = each[1:] / each[:-1]
    return len(each) >= least and bool((lasted > 1).all() and np.allclose(factors, factors[0], rtol=0.01))


def _raise(rate: float, ratio: float, factor: float) -> str:
    words = f"raise the learning rate to {number(rate * factor)} ({number(factor)} times"
    if not ratio > 0:
        return words + ")"
    half = f", and on while it helps: by today's curvature {number(0.5 * rate / ratio)} is half the largest stable one"
    return words + f"; the stability ratio becomes {number(ratio * factor)})" + half


def by_clipping(found: Finding, clipped: float) -> Finding:
    unscale = ("or, with a GradScaler: scaler.unscale_(optimizer) before clipping",) if clipped < 1e-2 else ()
    return replace(
        found,
        summary=f"Clipping leaves {number(100 * clipped)} % of a typical gradient. With that, "
        + found.summary[0].lower()
        + found.summary[1:],
        remedies=(f"raise the clipping threshold {number(1 / clipped)} times, or leave it out", *unscale),
        charts=(CLIPPED, *(chart for chart in found.charts if chart != _STABILITY)),
        formula="",
    )


def by_targets(run: Run, found: Finding, targets: tuple[float, float]) -> Finding:
    they = how_far(run, targets).replace("The targets", "they", 1)
    return replace(
        found,
        cause="target-scale",
        summary=f"The targets are too far away for this rate: {they}. {found.summary}",
        evidence=found.evidence | {"smallest target": targets[0], "largest target": targets[1]},
        remedies=(*NEARER, *found.remedies[:1]),
    )


def by_epsilon(found: Finding, times: float) -> Finding:
    return replace(
        found,
        cause="epsilon",
        summary=f"The optimizer's eps is {number(times)} times a typical gradient's entries, so that it does not "
        "rescale them: each step is the gradient over eps. With that, " + found.summary[0].lower() + found.summary[1:],
        evidence=found.evidence | {"eps over the gradient": times},
        remedies=(
            "leave eps at the optimizer's default",
            f"or keep it, and raise the learning rate {number(times)} times",
        ),
        formula=r"\frac{\alpha\, g}{\sqrt{v} + \epsilon} \approx \frac{\alpha}{\epsilon}\, g \text{ where } "
        r"\epsilon \gg \sqrt{v} \approx |g|",
    )


def by_counting_updates(found: Finding) -> Finding:
    """Of a rate that was gone before anything was learned."""
    return replace(found, remedies=(_OFTEN, found.remedies[0]))


def by_dampening(found: Finding) -> Finding:
    return replace(
        found,
        summary="With a dampening of 1 the momentum takes nothing of a new gradient: after the first update the steps "
        f"only fade, and the loss ended at {number(found.evidence['loss at end'])}.",
        remedies=("leave dampening at 0: torch.optim.SGD(..., momentum=0.9)",),
    )


def progress(run: Run) -> float:
    """What an update takes off the distance along the steepest direction, the momentum's share included."""
    return signals.median(signals.array(run.table("curvature", ["progress"]), "progress"))
