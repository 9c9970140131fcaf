r"""Learning rate too small.

## What it is
Each step goes a small part of the way that curvature and noise would allow. Training works, only at a crawl.

## What we look at
Whether a rate thirty times higher would still be inside the stability limit ($s$ and its noise term below 0.03) *and*
still lower the loss along the update itself (overshoot ratio $r$ below 1/60, where $r = 1/2$ is the minimum along the
step), after the latter (and the former too, where no noise term was measured) is lowered by the part of a batch's
gradient that is noise; and whether the run is held up by it: the loss is still on its way down at the end, so that a
run ten times as long (which is what a tenfold rate amounts to) would take a good part off it - unless momentum already
covers the steepest direction within an update, $\alpha\lambda_{\max}/(1-\mu) \ge 1$, or the loss fell by far less than
steps of that length promise - or all steps together were too short to move it, or to get once to the minimum along
them, where it is enough that $r$ is not surely larger, or to shrink even the steepest direction tenfold; or the answers
are still no better than the same one to every input, and gradient descent at $1/\lambda_{\max}$ would take a tenth off
the loss along the gradients of the later half. There a tenfold rate, $s$ below 0.1, is enough where gradients and
updates all point the same way and the run has ended. Where no curvature was measured: whether nothing was learned and
all updates, and a thousand like them, moved no weight matrix by more than 1 %, while the gradient is more than noise
and as long as at the start; or clipping left less than a hundredth of it, and nothing was learned, or no more than the
gradients say of steps that short; or the run ended in its warm-up with all weights where they were; or its loss falls
to the end as it began, along a gradient that has neither turned nor changed its length, and is no better yet than that
of the same answer to every input. A schedule is judged by its highest rate, unless it lowered the rate while the loss
was still falling, or to a hundredth in the first quarter and before anything was learned; a warm-up once the run has
ended. Of several parameter groups: whether one with a rate a thousand times below another's holds most of the weights
and of the gradient, and does not move them. Of an adaptive optimizer: whether its epsilon is ten times a typical
gradient's entries. Whether clipping leaves less than a tenth of a typical gradient. And whether one gradient, a hundred
times longer than all around it, makes its updates ten times shorter for a fifth of the run. And whether a one-cycle
schedule ends before it came to half of the rate that it leads to, a warm-up to a quarter, each of the rates having
lasted for updates on end; or begins anew time after time, still rising. And whether one of the few numbers that a
parameter of the model's own holds, as a resistance or a mass, is so large that an adaptive optimizer moves it by less
than a twentieth of its size in the whole run, though the loss would fall by a third if it moved by all of it.

## Why it happens
A coordinate with $0 < \alpha\lambda_i \ll 1$ is multiplied by $1 - \alpha\lambda_i$ a step, and needs about
$1/(\alpha\lambda_i)$ steps to decay. If even the steepest direction has $\alpha\lambda_{\max} \ll 1$, every direction
is slow for no gain in stability. A schedule that decays too early does the same from then on, and a warm-up that begins
anew before it has come to its end does it all along. An epsilon far larger than the gradient divides the rate of an
adaptive optimizer: $\alpha g/(\sqrt v+\epsilon)\approx\alpha g/\epsilon$. One gradient that is far longer than all
others, as a wrong example's, stays for thousands of updates in the mean of squares that each of them is divided by, at
$\beta_2 = 0.999$. Targets in the thousands are thousands of steps away from first answers near 0: an update of Adam
does not grow with the error.

*Weight scale*: an adaptive optimizer moves each number by about $\alpha$ an update, whatever its size. What is counted
in thousands has thousands of steps to go where its neighbour, counted in hundredths, jumps about: a ravine of the
parametrization, which other units undo.

## What to try
Raise the learning rate tenfold, watching $s$; gradient descent does best near $1/\lambda_{\max}$. If a schedule
lowered it, start the decay later. Give a slow parameter group a rate of the others' size; leave epsilon at its default.
Mend or leave out the example whose gradient is remembered. Standardize targets.

## When this is wrong
A warm-up under way, the tail of a decay after convergence and converged runs are silent; a decay right after which the
loss stopped falling is information where the gradients are noise: it may have taken that noise away and no more. A run
that has most of its loss behind it and ends on its way down, as many do, is information only, unless it was too short
to shrink even the steepest direction tenfold, or ten times its rate would be too small by the same measure. With very
noisy gradients a small rate can be right although one batch allows more: the noise term is what knows, and it is
measured for SGD and momentum only.

## In the lecture
*Learning Rate* ("α too small: slow progress").
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from diagnostics.rules import _epsilon as epsilon
from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _reach as reaching
from diagnostics.rules import _signals as signals
from diagnostics.rules import _small_rate_words as sentences
from diagnostics.rules._below_linear import is_behind_linear
from diagnostics.rules._crawling import crawls
from diagnostics.rules._cut_short import gone_early, gradient_left, spent_early
from diagnostics.rules._explained import LITTLE, explained_late
from diagnostics.rules._far_off import worse_for_long
from diagnostics.rules._far_targets import far_targets
from diagnostics.rules._finding import Finding
from diagnostics.rules._never_reached import LEADS_TO, begins_again, never_reached
from diagnostics.rules._one_gradient import one_gradient
from diagnostics.rules._out_of_step import out_of_step
from diagnostics.rules._pace import Pace, left_by_clipping, pace_of
from diagnostics.rules._slow_group import slow_group
from diagnostics.rules._unmoved import moved_at_most
from diagnostics.rules._without_curvature import FROZEN, NEXT_TO_NOTHING, TRIED, has_way_down, without_curvature
from diagnostics.run import Run

KIND = sentences.KIND
RANK = 13
OF_PACE = True
FEW = 20  # updates: of fewer nothing is said


def check(
    run: Run,
    *,
    inside: float = limits.FAR_INSIDE,  # of the limit: thirty times as much is still stable
    straight_inside: float = 0.1,  # the same, of a run that goes straight on and has nothing to show for it at its end
    slack: float = 0.017,  # overshoot: thirty times as much is at most half way to the minimum along the step
    promised: float = 0.3,  # of the loss: what a tenfold rate would still take off it
    learned: float = 0.5,  # of the starting loss gone: half way
    worth: float = 0.05,  # of the starting loss, to be had by a tenfold rate
    reached: float = 0.02,  # of the starting loss: below, what is left to gain is little
    decayed: float = 0.1,  # of the highest rate
    rest: float = 0.1,  # of the starting loss: a run that is down to less may well have come to its end
    delivered: float = 0.1,  # of what all updates should have taken off: with less something else holds the loss up
    still: float = 0.1,  # of the loss: the most that all updates could have taken off it, and could at half the limit
) -> Iterator[Finding]:
    history = signals.loss(run)
    rates = optimizer.learning_rates(run)[1]
    lowered = bool(len(rates)) and rates[-1] < decayed * rates.max()
    known = _without_limits(run, history, lowered, learned)
    if known:
        yield from known
        return
    signals.curvature(run)
    if history.count < FEW:
        return
    if _dampened(run):
        yield sentences.by_dampening(sentences.finding(run, ".", ratio=0.0))
        return
    pace = pace_of(run, history, lowered, decayed)
    share = signal.share(run, pace.first if pace.scheduled else history.middle_step)
    explained = explained_late(run)
    nothing, hardly = explained.is_nothing(LITTLE), explained.share < LITTLE and moved_at_most(run) <= FROZEN
    if hardly and pace.ratio < inside and pace.left < NEXT_TO_NOTHING:
        found = sentences.finding(run, ", with next to nothing learned.", ratio=pace.ratio)
        yield sentences.by_clipping(found, pace.left)
        return
    noise_alone = nothing and not hardly and not signal.surely_at_least(run, history.middle_step) > 0
    if not share > 0 or noise_alone:  # nothing would be followed by longer steps, unless what shortens them is no rate
        found = sentences.finding(run, ", with nothing learned.", ratio=pace.ratio)
        if nothing and pace.ratio < inside and (shortened := _shortened(found, pace, hardly)) is not None:
            yield shortened
        elif pace.scheduled and history.end > rest * abs(history.start):
            yield replace(_lowered_early(run, pace.first, words=sentences.FELL_BEFORE), severity="info")
        return
    if run.meta["status"] == "finished" and reaching.straight(run, history.middle_step) and _learned_little(run):
        inside = straight_inside
    stable = inside if signals.noise_term(run) > 0 else inside * share  # the noise term is what batches take off it
    if pace.ratio >= stable or pace.overshoot - 2 * signals.median_error(pace.overshoots) >= slack * share:
        return
    warming = bool(len(rates)) and rates[-1] > 1.05 * np.median(rates)
    if warming and run.meta["status"] != "finished":
        return
    if pace.scheduled:
        yield _lowered_early(run, pace.first, pace.ratio, pace.overshoot)
        return
    reach = reaching.reach(run, history, history.middle_step)
    standing = _stands(run, history, reach, pace, still=still, learned=learned, slack=slack)
    gone = history.start - history.end >= delivered * reach
    slow = gone and _short(run, pace, slack * share) and crawls(run, history, promised, learned, worth, reached)
    belated = worse_for_long(KIND, run)  # steps this short are what it took so long for, wherever it began
    if belated and reaching.at_rest(run, history, history.middle_step):
        belated = None  # it has come to where these steps lead, and that is no better
    if not (standing or slow or belated):
        return
    words = " and still falls steadily."
    if standing:
        words = ", and no more was possible at these step lengths."
    elif belated:
        until = belated.last_step or history.last_step
        words = f", and until step {until} it was above that of the same answer to every input."
    found = _of_the_rate(run, words, pace, warming)
    # With most of the loss gone the run is only slow, as many are that end on their way down; unless it was too
    # short to shrink even the steepest direction tenfold, or ten times the rate would be too small all the same, or it
    # is behind a linear model.
    most_gone = history.end <= (1 - learned) * history.start
    too_short = limits.steps_for_tenfold(1 - min(sentences.progress(run) * pace.left, 1)) >= history.count
    settled = most_gone and not too_short  # nor where no limit is known that would tell
    settled = settled and not (10 * pace.ratio < stable and 10 * pace.overshoot < slack * share)
    settled = settled and not is_behind_linear(run, history.middle_step)
    yield found if standing or belated or not settled else replace(found, severity="info")


def _without_limits(run: Run, history: signals.Loss, lowered: bool, learned: float) -> list[Finding]:
    """What shows without a limit of stability."""
    long = history.count >= FEW
    unmeasured = long and run.table("curvature", ["step"]).empty
    if unmeasured:
        left = 1.0 if epsilon.rescales(run) else left_by_clipping(run, history.middle_step)
        found = without_curvature(run, history, left)
        if found is not None:
            return [found]
    schedules = [*never_reached(KIND, run), *begins_again(KIND, run)]
    told = [*slow_group(KIND, run), *one_gradient(KIND, run), *schedules, *out_of_step(KIND, run)]
    if told or not long or not lowered:
        return told
    gone = gone_early(run, has_way_down(run, history, 1 - learned))
    if gone is not None:
        much = "anything" if explained_late(run).is_nothing(LITTLE) else "much"
        words = f": the rate was lowered to next to nothing by step {gone}, before {much} was learned."
        found = sentences.finding(run, words, first=gone, cause="schedule", remedy=sentences.LATER)
        return [sentences.by_counting_updates(found)]
    spent = spent_early(run, history)
    return [_lowered_early(run, spent)] if spent and unmeasured and gradient_left(run, history, spent) else []


def _lowered_early(
    run: Run, first: int, ratio: float = np.nan, overshoot: float = np.nan, words: str = sentences.GRADIENT_LEFT
) -> Finding:
    return sentences.finding(
        run,
        words.format(first),
        first=first,
        ratio=ratio,
        overshoot=overshoot,
        cause="schedule",
        remedy=sentences.LATER,
    )


def _shortened(found: Finding, pace: Pace, clipped: bool) -> Finding | None:
    """By what is not the rate."""
    if pace.outweighed * pace.left >= epsilon.OUTWEIGHS:  # without clipping, too
        return sentences.by_epsilon(found, pace.outweighed)
    return sentences.by_clipping(found, pace.left) if pace.left < 1 and clipped else None


def _of_the_rate(run: Run, words: str, pace: Pace, warming: bool) -> Finding:
    cause, remedy = ("schedule", sentences.SHORTER) if warming else ("learning-rate", "")
    found = sentences.finding(run, words, ratio=pace.ratio, overshoot=pace.overshoot, cause=cause, remedy=remedy)
    if warming:
        return sentences.by_clipping(found, pace.left) if pace.left < 1 else found
    targets = far_targets(run)
    return _shortened(found, pace, True) or (sentences.by_targets(run, found, targets) if targets else found)


def _short(run: Run, pace: Pace, slack: float) -> bool:
    """Steps that do not jump to the minimum along the steepest direction, nor go far along themselves. Where no limit
    is known for the optimizer the latter must be sure."""
    if np.isnan(pace.ratio):
        return pace.overshoot + 2 * signals.median_error(pace.overshoots) < slack
    return sentences.progress(run) * pace.left < 1 and not pace.overshoot >= slack


def _stands(
    run: Run, history: signals.Loss, reach: float, pace: Pace, *, still: float, learned: float, slack: float
) -> bool:
    """All updates could not have moved the loss, or never got near the minimum along them, or did not shrink even the
    steepest direction tenfold, and at half the limit could have."""
    half, surely = history.middle_step, signal.surely(run, history.middle_step)
    reach = max(reach, history.start - history.end)  # by how much they did
    if np.isnan(pace.ratio):  # no limit is known for this optimizer: thirty times as much is half the loss
        tiny = reach < slack * history.end and history.end > signals.NOTHING * history.start
        return tiny and reaching.downhill(run, history, half, surely) >= still * history.end
    downhill = reaching.downhill(run, history, half, surely)
    if np.isnan(downhill) and reaching.straight(run, half):
        downhill = 0.5 * reach / pace.ratio  # no curvature of the loss itself is known: by the optimizer's limit
    if _learned_little(run) and downhill >= still * history.end:
        return True
    if reaching.at_rest(run, history, half):
        return False
    begun = abs(2 * pace.overshoot) * history.count < 1  # each update goes 2 r of the way to the minimum (or crest)
    begun = (
        (begun or (history.count >= TRIED and reaching.shrunk(run) * pace.left < np.log(10)))
        and surely > 0
        and history.end > (1 - learned) * history.start
    )
    return (reach < still * abs(history.start) or begun) and 0.5 * reach >= still * abs(history.end) * pace.ratio


def _learned_little(run: Run) -> bool:
    return explained_late(run).share < LITTLE and signals.loss(run).end > 0


def _dampened(run: Run) -> bool:
    """A momentum that takes nothing of a new gradient, in every group."""
    groups = run.meta["hyperparameters"] or [{}]
    return all(group.get("momentum") and group.get("dampening") == 1 for group in groups)


def explains(finding: Finding, other: Finding) -> bool:
    if other.kind == "saddle-point":  # steps grow from next to nothing there, and these were never to be so short
        return LEADS_TO in finding.evidence
    return other.kind in {"local-minimum", "plateau"} and not other.alarm
