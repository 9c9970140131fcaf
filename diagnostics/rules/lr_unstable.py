r"""Learning rate past the stability limit.

## What it is
The step is too long for the curvature. Along the steepest direction every update lands farther from the valley's
floor than it started, on the other side, so the error grows instead of shrinking: the loss climbs, and often ends
in `NaN`.

## What we look at
- The stability ratio $s$ of the optimizer in use: the top eigenvalue of the Hessian, rescaled by learning rate,
  momentum and preconditioner so that $s = 1$ is exactly the limit.
- A finding needs both: $s > 1$ (or, where curvature was not measured, growth over several updates; where the loss is so
  flat that there is none, gradients that turn round at every update), and harm - the loss stands above where it began,
  or has lost most of what it had gained, or is no longer finite.
- Between two estimates $s$ follows the learning rate, to which it is proportional.
- Where the gradient has grown tenfold over several updates and is still growing, the loss that follows if it grows once
  more at this rate is what counts; otherwise the level of the last twentieth does, so that a spike that passes is no
  harm.
- With small batches the noise term of the stability budget is added to $s$ (not for optimizers that rescale their
  gradients, where it is advice), unless most of the gain was made after it was measured. Where that sum is surely above
  1 in most of what was measured, by noise alone, a loss that has fallen no further since is told too.
- A loss that grows while no update goes as far as the minimum along it ($r < 1/2$ in all of them) has another reason,
  as a task that gets harder.
- One huge step is told where its ruins stay above twice the starting loss, and no dead or saturated units tell of it.
- Where the loss came back although the rate stayed, it is told if a twentieth of the run went by above twice the
  starting loss; or before it fell at all, where the first updates of an optimizer that does not rescale gradients left
  weights three times as large, along a gradient that was thirty times smaller afterwards.
- Where another network is trained beside this one, whose updates change the loss as well, only a loss that ends above
  twice its start is harm; where the values of a policy are learned, whose returns grow, ten thousand times.
- In a run that gains little, at ten times the limit and more: whether the slopes that its updates go along promise ten
  times the loss itself.
- Adam's updates, where its first beta is larger than the root of the second: whether an average weight moves by more
  than ten times the rate.

## Why it happens
On a quadratic with curvature $\lambda$ gradient descent multiplies the error by $1 - \alpha\lambda$ a step:
$$\theta_k = (1 - \alpha\lambda)^k\,\theta_0.$$
For $\alpha\lambda > 2$ that factor is below $-1$: the iterates flip sign and grow. So $\alpha < 2/\lambda_{\max}$
is needed. Momentum $\mu$ raises the limit to $2(1+\mu)/\alpha$, Nesterov's variant has
$2(1+\mu)/((1+2\mu)\alpha)$, and Adam at $\beta_1 = 0.9$ has $38/\alpha$ on its own rescaled Hessian. A warm-up or
schedule that raises $\alpha$ too far, or curvature that grows while training, crosses the limit later in a run.
Small batches differ in curvature, by $\sigma$: that adds $\alpha\sigma^2/(2(1-\mu)\lambda)$ to the ratio, and the sum
has to stay below 1.

*Betas*: Adam divides an average $m$ of the gradients by the root of one of their squares, $v$. Where gradients fade
both do, and $m/\sqrt v$ grows as $(\beta_1/\sqrt{\beta_2})^k$ if $\beta_1 > \sqrt{\beta_2}$.

*Initialization*: a gradient is a product of all that lies between a weight and the loss. Where each factor is large,
as large weights that are applied at every step of a recurrence are, it is enormous, and holds for a step as tiny.

## What to try
Set the learning rate to $0.9\,\alpha/s$ (the finding says the number). If the curvature is largest in the first
updates only, warm the rate up over those. If noise is the larger term, use a larger batch or a smaller momentum.

## When this is wrong
A *catapult* - a short spike after which the loss falls below where it was - is no fault and is not reported once
it has recovered, unless that took long. Adaptive optimizers hover at $s \approx 1$ by themselves, which is reported
as edge of stability. Between two curvature estimates a blow-up can begin unseen; then it is told from a cliff by its
gradual growth only. While a catapult climbs it looks like a divergence, and is reported as one until it turns. A rate
that passes the limit many times over multiplies the loss by more than ten an update: then no update comes between the
first harm and ten times the starting loss. A run that has nothing to learn and was thrown up by its first updates
(RMSprop's are ten times as long) is reported although it came back down. Numbers beyond 1e19 after the first updates
are the rate's doing, whatever function they overflowed in.

## In the lecture
*Learning Rate* ("α much too large: instability") and *Ill-conditioned curvature: gradient descent dynamics*.
"""

import re
from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _harm as harm
from diagnostics.rules import _instability_words as words
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules import _thrown as thrown
from diagnostics.rules._betas import swapped_betas
from diagnostics.rules._finding import Finding
from diagnostics.rules._growth import (
    Growth,
    Limit,
    against_limit,
    by_noise_alone,
    growth,
    is_swift,
    running_away,
    undone,
)
from diagnostics.rules._in_vain import in_vain
from diagnostics.rules._moving import is_of_a_policy
from diagnostics.run import Run

KIND = words.KIND
_RECEIVED = re.compile(r"received numbers from (\S+) to (\S+) and overflowed float32")
RANK = 1
SEEN = 5  # updates of a growth whose overshoot was measured: in a growth past the limit each one has r near 1 or above


def check(
    run: Run,
    *,
    sigmas: float = 5.0,  # of the step-to-step noise: one chance in millions a step if it is normal
    lost: float = 0.5,  # of what was gained; less is a spike within the usual play of a noisy run
    sustained: float = 1.3,  # stability ratio in the later half; networks at the edge of stability stay below 1.15
    reached: float = 0.2,  # of the starting loss: a run this far down trains, whatever its ratio
    gradual: int = 4,  # updates; a cliff takes one or two, growth at s = 2 is still threefold only each
    ruined: float = 2.0,  # times the starting loss at the end: what a single huge step left is not over
    returns: float = 1e4,  # the same of a policy: values of returns a hundred times as large are off by as much
    killed: float = 0.9,  # of a layer's units: nothing passes it
    spent: float = 0.05,  # of the run far above its start, and `gradual` updates: time lost; a catapult takes a few
) -> Iterator[Finding]:
    history = signals.loss(run)
    if history.count < 3:
        return
    if (swapped := swapped_betas(KIND, run)) is not None:
        yield swapped
        return
    above = harm.far_above(history, sigmas)
    spike = 1 if words.trusts_its_steps(run) else 3
    harmed = harm.harmed(history, sigmas, lost, reached, running_away(run, history, gradual), spike)
    ended = run.meta["status"] != "running"  # before, what a catapult took is not yet little beside the run
    recovered = ended and not harmed and len(above) >= max(gradual, spent * history.count)
    if not harmed and not recovered:
        far_off = None if by_layer.has_lost_layer(run, killed) else thrown.by_first_updates(KIND, run)
        found = [far_off] if far_off else [*_sustained(run, history, sustained, reached)]
        yield from found or [*_by_batches(run, history, reached)] or in_vain(KIND, run, history)
        return
    moves = _written_to(run) or _trained_beside(run) or is_of_a_policy(run)
    if moves and abs(history.end) <= (returns if run.meta["policy"] else ruined) * abs(history.start):
        return
    grown = growth(run, history)
    limit = against_limit(run, grown, gradual)
    # What a single huge step did is over, or the units that it killed or saturated tell of it.
    lost_units = by_layer.has_lost_layer(run, killed)
    told = lost_units or not history.end > ruined * abs(history.start)
    one_step = _one_step(run, grown, gradual)
    beyond = (
        _flung(run)
        or thrown.at_once_and_for_good(run, history)
        or (np.isnan(limit.ratio) and (_never_trained(history) or words.trusts_its_steps(run)))
    )
    if told if one_step else _no_instability(run, limit.ratio, grown, gradual) and not beyond:
        return
    within, at_lowest = limit.ratio - limit.noise <= 1, harm.fell_to_the_end(history, sigmas)
    if (within and recovered) or (at_lowest and (within or _outside_a_domain(run))):
        return
    yield words.finding(run, history, grown, limit, int(above[-1]) if recovered else None)


def _written_to(run: Run, *, most: float = 0.5) -> bool:
    """Whether something else than the optimizer moves the weights as well, and takes back most of what it does, as a
    bound on them: where the loss goes is not the rate's doing alone."""
    return signals.median(signals.column(run, "undone")[1]) >= most


def _trained_beside(run: Run) -> bool:
    """Whether another network is trained beside this one, or may be, through it, as a generator through its
    discriminator: then the loss itself changes, and rises as the other learns."""
    return bool(run.meta["trained_beside"]) or not signals.events(run, "gradients-cleared").empty


def _flung(run: Run, *, huge: float = 1e19) -> bool:
    """Whether numbers whose square leaves float32 met a function after an update: no function makes those of moderate
    ones (exp and powers overflow first), so the weights have grown that far."""
    seen = signals.nonfinite_events(run)
    if not seen or seen[0][0] <= 1 or not seen[0][1].startswith("overflow"):
        return False
    received = _RECEIVED.search(seen[0][2])
    return received is not None and max(abs(float(each)) for each in received.groups()) > huge


def _outside_a_domain(run: Run) -> bool:
    """Whether the first number that was not finite came from a function that is not, for what it was given."""
    seen = signals.nonfinite_events(run)
    return bool(seen) and seen[0][1].startswith(signals.DOMAIN)


def _never_trained(history: signals.Loss, *, updates: int = 10, times: float = 1e3) -> bool:
    """Whether the loss had grown a thousandfold by the time it stopped being a number, within the run's first updates:
    a cliff is met on the way, not at the start."""
    bad = np.flatnonzero(~np.isfinite(history.values))
    return len(bad) > 0 and 0 < bad[0] <= updates and bool(history.values[bad[0] - 1] > times * abs(history.start))


def _sustained(run: Run, history: signals.Loss, sustained: float, reached: float) -> Iterator[Finding]:
    """Far past the limit for half the run without blowing up: a loss of bounded slope, bouncing from wall to wall."""
    steps, ratios, noise = _cautious_ratios(run)
    late = steps >= history.middle_step
    falling = history.late_trend
    if optimizer.adaptive(run) or history.count < 20 or history.end <= reached * history.start:
        return
    if _learned_nothing(history) and (ratios > sustained).sum() >= 3:  # thrown about before it came to learn anything
        late = ratios > sustained
    if late.sum() >= 3 and np.median(ratios[late]) > sustained and not (falling.z > 3 and falling.relative > 0.2):
        since = int(steps[ratios > 1][0])
        rate = signals.median(signals.inside(run, "lr", history.middle_step, history.last_step))
        limit = Limit(float(np.median(ratios[late])), rate, since, float(np.median(noise[late])))
        yield words.finding(run, history, Growth(since, 0, np.nan), limit)


def _learned_nothing(history: signals.Loss, *, nothing: float = 0.9) -> bool:
    return min(history.end, history.best) >= nothing * history.start > 0 and bool(np.nanmin(history.values) > 0)


def _by_batches(
    run: Run, history: signals.Loss, reached: float, *, errors: float = 2.0, least: int = 2
) -> Iterator[Finding]:
    """What small batches add to the steps grows under momentum, though curvature alone would not make it: the budget is
    surely exceeded in most brackets, in two at least and not only in earlier ones, and the loss has fallen no further
    since the first of them."""
    terms = ["curvature_term", "noise_term"]
    table = run.table("batches", ["origin", *terms, *(f"{term}_error" for term in terms)]).dropna()
    if optimizer.adaptive(run) or len(table) < least or history.count < 20 or history.end <= reached * history.start:
        return
    steps, curvature, noise, *off = table.to_numpy().T
    total = curvature + noise
    rate_steps, rates = optimizer.learning_rates(run)
    still = signals.median(limits.held(rate_steps, rates, steps, total)[rate_steps >= history.middle_step])
    sure = (total - errors * np.hypot(*off) > 1) & (noise > curvature)
    if sure.sum() < max(least, len(sure) / 2) or not still > 1:
        return
    since = int(steps[sure][0])
    falling = signals.trend(history.after(since))
    if not (falling.z > 3 and falling.relative > 0.2):
        rate = float(np.median(rates[rate_steps >= since]))
        limit = Limit(float(np.median(total[sure])), rate, since, float(np.median(noise[sure])))
        yield words.finding(run, history, Growth(since, 0, np.nan), limit)


def _cautious_ratios(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, stability ratios and the noise in them: of independent batches (biased down) where those were measured."""
    table = run.table("batches", ["origin", "curvature_term", "noise_term"]).dropna()
    if len(table) >= 3:
        noise = signals.array(table, "noise_term")
        return table["origin"].to_numpy(), signals.array(table, "curvature_term") + noise, noise
    try:
        steps, ratios = steps_made.stability(run)
    except signals.Missing:
        steps, ratios = np.array([], dtype=int), np.array([])
    return steps, ratios, np.zeros_like(ratios)


def _one_step(run: Run, grown: Growth, gradual: int) -> bool:
    """A single huge step: the rate that did the harm was gone an update or two later."""
    rate_steps, rates = optimizer.learning_rates(run)
    inside = (rate_steps >= grown.onset) & (rate_steps <= grown.end)
    if not inside.any() or rates[-1] >= 0.5 * rates[inside].max():
        return False
    return int((rates >= 0.5 * rates[inside].max()).sum()) < gradual


def _no_instability(run: Run, ratio: float, grown: Growth, gradual: int) -> bool:
    """Whether the harm has another reason than a step past the limit."""
    steps, overshoot = steps_made.overshoots(run)
    inside = overshoot[(steps >= grown.onset) & (steps <= grown.end) & np.isfinite(overshoot)]
    if len(inside) >= SEEN and inside.max() < 0.5:  # no update went as far as its own batch's minimum along it
        return True
    if ratio > 1 or undone(run, ratio, grown):
        return False
    overshot = bool((inside > 1).any())  # the update itself raised the loss of its own batch
    if np.isfinite(ratio):
        return not (overshot and ratio > 0.5 and grown.steps >= gradual)
    grows = (grown.factor > 10 and is_swift(signals.loss(run), grown)) or not np.isfinite(grown.factor)
    return not (grown.steps >= gradual and (overshot or grows))


def explains(finding: Finding, other: Finding) -> bool:
    """Whatever is found in a run that has diverged is found in its ruins, except what was wired or planted before."""
    if other.kind in {"wiring", "symmetry", "zero-gradient"}:
        return False
    if other.kind == "cliff" and finding.cause == "schedule":  # what a rising rate ran into
        return other.first_step >= finding.first_step - 20
    if other.kind == "cliff":  # only if the rate was past the limit well before the jump, without what noise adds
        return other.first_step > finding.first_step + 3 and not by_noise_alone(finding)
    planted = other.kind in {"dead-units", "saturated-units", "non-finite"}
    if finding.last_step is not None and (planted or other.kind == "lr-oscillation"):
        return False  # it is over: what lasts speaks for it
    return not planted or other.first_step >= finding.first_step - 1
