r"""Bouncing that holds the loss up.

## What it is
The step is stable but too long: along the steepest direction the weights jump from wall to wall of the valley and
the loss stays at the height of the walls. Or the momentum is so high that the weights ring back and forth for the
whole run.

## What we look at
The weights projected on the top eigenvector: whether successive updates are anti-correlated there, and how much of
the loss the bouncing itself makes up, $\tfrac12\lambda_{\max}\operatorname{Var}(x)$. Bouncing alone is no fault - at
$\alpha\lambda = 1.5$ the loss still falls fourfold a step; it must take a tenth of the run to shrink the loss tenfold.
For mini-batch noise: a loss that no longer falls although the updates go past the minimum along themselves, on the very
batch they were made for, or more often than by chance so far past it that they raise that batch's loss; under an
optimizer that rescales gradients, which settles at its limit by itself, the former only from there on, and at twice the
limit and more also most of the way; one whose first ten updates were made at twice the limit and more, after which a
loss stands that is less than a tenth below that of the same answer to every input; or a loss of a linear model with a
minimum (a squared error, or a cross-entropy on data that nothing separates) that has settled while a fifth of it is
motion around the minimum, which holds up $\tfrac\alpha4 E|g|^2$. For momentum: a memory of $2/(1-\mu)$ updates that is
not small against the run, with a loss that swings (against its level, or against all that it covers later) or has not
settled. And a rate that was lowered and came back in one update, after which the loss stays above what it had been at.

## Why it happens
For $1 < \alpha\lambda_i \le 2$ the factor $1 - \alpha\lambda_i$ is negative: the coordinate changes sign every
step, and near 2 it hardly shrinks. Mini-batch noise keeps it from ever settling. With momentum $\mu$ oscillations
decay like $\mu^{k/2}$ only; at $\mu = 1$ energy is conserved and it never settles. Adam's first steps are as long as
any, however small the gradient: far past the limit they throw a network where its answers no longer follow its inputs,
and steps of that length do not find the way back. A schedule that begins anew brings the long steps back, and with them
the height that the short ones had come down from.

## What to try
Lower the learning rate to $1/\lambda_{\max}$ (the finding says the number), where that coordinate is gone in one
step, or decay it towards the end. For momentum: lower $\mu$; the terminal velocity $\alpha/(1-\mu)$ tells the rate
to go with it.

## When this is wrong
Full-batch training at the edge of stability bounces while the loss falls; that is reported as information. The
variance is taken over a window of updates after each curvature estimate; slow ringing is longer than the window. The
overshoot is known at some fifteen updates of a half: an adaptive rate that holds the loss up by a few percent, or under
a loss that still falls, is not seen.

## In the lecture
*Learning Rate* ("α too large: oscillations") and *Momentum* ("if μ = 1 ... it will never settle down").
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _limits as limits
from diagnostics.rules import _noise_ball as noise_ball
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules import _stretches as stretches
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._raised_again import raised_again
from diagnostics.rules._ringing import momentum_ringing
from diagnostics.rules._words import number
from diagnostics.run import Run

KIND = "lr-oscillation"
RANK = 12
OF_PACE = True


@dataclass(frozen=True)
class Bounce:
    """The weights along the top eigenvector in the window after one estimate.

    `share`: bouncing's part of the loss; `flip`: lag-one correlation of successive updates.
    """

    step: int
    share: float
    flip: float
    eigenvalue: float
    ratio: float


def check(
    run: Run,
    *,
    windows: int = 2,  # in a row, the last ones: one window may catch a spike
    held: float = 0.3,  # share of the loss made by bouncing, where the loss has stopped falling
    held_falling: float = 0.7,  # where it still falls: nearly all of what is left
    memory: float = 0.3,  # of the run: 2/(1-mu) updates, within which nothing settles
    swing: float = 0.5,  # of the level, or of all that the loss covers, from trough to crest in the later half
    edge: float = 1.15,  # stability ratio; beyond, steps are unstable or clipped
    lasting: float = 0.1,  # of the run, for the bouncing to shrink the loss tenfold: shorter bouncing costs nothing
    reached: float = 1e-9,  # of the starting loss: rounding
) -> Iterator[Finding]:
    history = signals.loss(run)
    if history.count < 20 or history.end <= reached * history.start:
        return
    ringing = momentum_ringing(KIND, run, history, memory, swing)
    if ringing is not None:
        yield ringing
        return
    returned = raised_again(KIND, run, history)
    if returned is not None:
        yield returned
        return
    estimates, ratios = steps_made.stability(run)
    bounces = _bounces(run, history)
    if len(bounces) >= windows and _bouncing(history, bounces[-windows:], held, held_falling, edge, lasting):
        yield _across(run, history, bounces, held)
    elif noise_ball.settled_high(run, history) or noise_ball.too_far(run, history, estimates, ratios):
        yield _in_noise(run, history, limits.at_last_rate(run), noise_ball.began_past(run, estimates, ratios))


def _bouncing(
    history: signals.Loss, last: list[Bounce], held: float, held_falling: float, edge: float, lasting: float
) -> bool:
    """Across the steepest direction, in each of the last windows, and slowly; the last one says how much of the loss it
    is, since bouncing outlasts everything else."""
    falling = signals.trend(history.values[2 * history.count // 3 :])
    needed = held_falling if falling.z > 3 and falling.relative > 0.1 else held
    factor = (1 - 2 * float(np.median([each.ratio for each in last]))) ** 2  # of the loss, a step
    slow = limits.steps_for_tenfold(factor) >= lasting * history.count
    across = all(each.share >= held and each.flip < 0 and 0.5 < each.ratio <= edge for each in last)
    return slow and across and last[-1].share >= needed


def _bounces(run: Run, history: signals.Loss) -> list[Bounce]:
    table = run.table("scalars", ["step", "top_projection", "top_origin"]).dropna()
    curvature = run.table("curvature", ["step", "eigenvalues", "stability"])
    tops = {
        int(step): (values[0], ratio)
        for step, values, ratio in zip(curvature["step"], curvature["eigenvalues"], curvature["stability"], strict=True)
        if len(values)
    }
    found = []
    for _, window in table.groupby("top_origin"):
        at = int(window["top_origin"].iloc[0])
        if len(window) < 5 or at not in tops or not np.isfinite(window["top_projection"]).all():
            continue
        eigenvalue, ratio = tops[at]
        x = window["top_projection"].to_numpy(dtype=float)
        inside = (history.steps >= window["step"].min()) & (history.steps <= window["step"].max())
        height = abs(signals.level(history.values[inside]))
        u = np.diff(x)
        power = float(np.mean(u[:-1] ** 2) * np.mean(u[1:] ** 2)) ** 0.5
        flip = float(np.mean(u[:-1] * u[1:]) / power) if power > 0 else 0.0
        amplitude_square = float(np.mean(u**2)) / 4  # a bounce of amplitude a has u = 2a
        share = 0.5 * eigenvalue * amplitude_square / height if height > 0 else 0.0
        found.append(Bounce(at, share, flip, float(eigenvalue), float(ratio)))
    return found


def _across(run: Run, history: signals.Loss, bounces: list[Bounce], held: float) -> Finding:
    last = bounces[-1]
    first = last.step
    for each in reversed(bounces):
        if each.share < held or each.flip >= 0:
            break
        first = each.step
    seen = (
        f"Since step {first} the weights bounce across the steepest direction (successive updates correlate at "
        f"{number(last.flip)}, s = {number(last.ratio)}), and {number(100 * min(1.0, last.share))} % of the loss of "
        f"{number(history.end)} is that bouncing."
    )
    rate = optimizer.rate_at(run, np.array([last.step]))
    best = number(0.5 * rate / last.ratio)
    remedy = (
        f"lower the learning rate from {number(rate)} to {best}: the steepest direction is then settled in one step"
    )
    evidence = {
        "share of the loss": last.share,
        "correlation of successive updates": last.flip,
        "largest eigenvalue": last.eigenvalue,
    }
    return _finding(run, history, last.ratio, rate, first, seen, remedy, evidence)


def _in_noise(run: Run, history: signals.Loss, ratio: float, began: float) -> Finding:
    """`began`: stability ratio of first updates that threw the network where it learns nothing."""
    stretch = stretches.flat(run)
    lasts = stretch is not None and not stretch.escaped
    half = history.middle_step
    first = stretch.first_step if stretch and lasts else half
    share = quadratic.held_by_noise(run, history, half)[0] if quadratic.has_minimum(run) else math.nan
    past = optimizer.adaptive(run) and ratio >= noise_ball.PAST
    risen = noise_ball.climbs(signals.trend(history.after(half)))
    why = (
        f"at {number(ratio)} times the largest stable rate " if past else ""
    ) + "the updates go too far for the noise of the batches and undo each other"
    if began:
        why = (
            f"the first updates were made at {number(began)} times the largest stable rate, and what they left learns "
            "next to nothing from its inputs, while they still go a good part of the way to the minimum along each"
        )
    seen = (
        f"The loss rose to {number(history.end)} after step {half}: "
        if risen
        else f"The loss has stood at {number(history.end)} since step {first} although the gradient has not gone: "
    ) + (
        f"{why}; {number(100 * min(1.0, share))} % of the loss is this motion around the minimum."
        if share > 0
        else f"{why}."
    )
    rate = optimizer.last_rate(run)
    lower_rate = min(rate / 10, 0.5 * rate / ratio) if past else rate / 10
    remedy = f"lower the learning rate from {number(rate)} to {number(lower_rate)}: "
    # In a quadratic the floor is (1 - share) of the loss, and the share is proportional to the rate.
    lower = history.end * (1 - share) / (1 - share / 10)
    remedy += (
        f"the loss then settles near {number(lower)}"
        if 0 < share < 1
        else "the part of the loss that long steps hold up falls with it"
    )
    evidence = {
        "noise term": signals.noise_term(run),
        "overshoot": signals.median(steps_made.overshoots_inside(run, half, history.last_step)),
    } | ({"share of the loss": share} if share > 0 else {})
    found = _finding(run, history, began or ratio, rate, first, seen, remedy, evidence)
    return replace(found, remedies=(*found.remedies[:-1], _WARM_UP)) if began else found


_WARM_UP = "or warm it up: torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=100), say"


def _finding(
    run: Run,
    history: signals.Loss,
    ratio: float,
    rate: float,
    first: int,
    seen: str,
    remedy: str,
    evidence: dict[str, float],
) -> Finding:
    return Finding(
        kind=KIND,
        cause="learning-rate",
        severity="warning",
        first_step=first,
        last_step=None,
        layers=(),
        summary=seen,
        evidence={"stability ratio": ratio, "learning rate": rate, **evidence},
        remedies=(
            *conditioning.if_far_from_standardized(run),
            remedy,
            f"or decay it: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max={history.count})",
        ),
        charts=(
            Chart("line", "scalars", ("top_projection",), "Weights along the top eigenvector"),
            LOG_LOSS,
            Chart("stability", "curvature", ("stability",), "Stability ratio against this optimizer's limits"),
        ),
        formula=limits.stability_formula(run, ratio, rate),
    )


def explains(finding: Finding, other: Finding) -> bool:
    over = other.kind == "lr-unstable" and other.last_step is not None  # the same rate, at the start
    unexplained = other.kind == "plateau" and not other.alarm
    ringing = finding.cause == "momentum" and other.kind == "lr-too-small"  # it has not come to its speed, or turns
    swings = finding.cause == "momentum" and other.kind == "dead-units" and other.cause == "large-step"
    killed = swings and finding.first_step < other.first_step
    return over or unexplained or ringing or killed or other.kind in {"edge-of-stability", "local-minimum"}
