"""Whether the noise of the batches holds the loss up: long steps keep the weights in motion around the minimum."""

import math

import numpy as np

from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules._explained import explained_late
from diagnostics.rules._moving import targets_known
from diagnostics.run import Run

# Of a quadratic loss that is motion: one designs for a misadjustment of ten per cent (Widrow and Stearns 1985, Adaptive
# Signal Processing, chapter 6), and twice as much is no choice.
USUAL = 0.1
PAST = 2.0  # stability ratio of an adaptive optimizer: twice the one at which it settles by itself


def settled_high(run: Run, history: signals.Loss, *, held: float = 0.2, trifle: float = 0.02) -> bool:
    """A loss with a minimum that stands still while `held` of it is motion: more than a `trifle` of the way down."""
    if not quadratic.has_minimum(run):
        return False
    half = history.middle_step
    share, error = quadratic.held_by_noise(run, history, half)
    seen = share * history.end >= trifle * (history.start - history.end)
    return share >= held and share - 2 * error >= USUAL and seen and _stands(history, half)


def climbs(later: signals.Trend, *, climb: float = 0.3) -> bool:
    """A rise of the loss that shows it is held up."""
    return later.z < -3 and later.relative < -climb


def _stands(history: signals.Loss, since: int) -> bool:
    settled = signals.trend(history.after(since))
    return not (settled.z > 3 and settled.relative > 0.02)


def too_far(
    run: Run,
    history: signals.Loss,
    estimates: np.ndarray,
    ratios: np.ndarray,
    *,
    beyond: float = 0.5,  # overshoot ratio: past the minimum along the step, on the batch the step was made for
    far: float = 0.3,  # more than half way there, which noise turns into too far
    ratio: float = 0.5,  # stability ratio with noise: beyond it, successive updates cancel along the steepest direction
    left: float = 0.05,  # of the starting loss: below, the run has learned what there was
    little: float = 0.02,  # the same where updates that raise the loss of their own batch prove that more is left
    nothing: float = 0.9,  # of the starting loss: below, something was learned, and the rest may be the data's floor
    past: float = PAST,
    jumps: float = 0.01,  # noise of the loss over its level: below, there is no noise to speak of
    seen: float = 1e-3,  # of the loss: what the updates hold up at most; less is seen on no plot
    trifle: float = 0.02,  # of all that the loss came down: the same, but of full batches rescaled by themselves
) -> bool:
    """Long steps keep the weights in motion: flat loss, and updates that go too far on their own batch.

    Steps that go only most of the way must also raise the loss, of all batches or now and then of their own. One whose
    targets are not known may rise because these move. With momentum an update raises its own batch's loss now and then
    for the sake of those before, and where the gradient is not the loss's own (straight-through estimators) it always
    may: so either the rate must be near its limit, or successive gradients oppose each other. Opposition alone is
    normal in a converged run's noise ball, where they correlate at about -s (Pflug 1990; Chee and Toulis 2018). Or the
    first updates were far past the limit, and nothing has been learned since.
    """
    half = history.middle_step
    over_steps, over = steps_made.overshoots(run)
    over = over[over_steps >= half]
    length = signals.median(over)
    raised = _more_than_chance(int((over > 1).sum()), len(over))
    late = ratios[estimates >= half][-3:]
    curved, noise = signals.median(late if len(late) else ratios[-1:]), signals.noise_term(run)
    # With rescaled gradients the budget's terms do not add up: a noisy coordinate's steps are the shorter for it.
    total = max(curved, noise) if optimizer.adaptive(run) else curved + noise
    near = total >= ratio
    opposed, thrown = signal.opposed(run, half), began_past(run, estimates, ratios) > 0
    moves = near or opposed or thrown
    if history.end < (little if raised else left) * abs(history.start) or not length >= far or not moves:
        return False
    if thrown and _stands(history, half):
        return True
    if quadratic.is_loss(run):
        share, error = quadratic.held_by_noise(run, history, half)
        if share + 2 * error < USUAL:
            return False
    held, fell = _held_up_at_most(run, half), history.start - history.end
    noisy = history.noise >= jumps * history.end
    if fell > 0 and (
        held < seen * abs(history.end) or (held < trifle * fell and (noisy or not optimizer.adaptive(run)))
    ):
        return False  # an adaptive optimizer's updates flip signs at any floor
    if raised and length >= beyond and history.after(half).mean() >= history.start:
        return True  # bursts that the median does not see
    settled = signals.trend(history.after(half))
    if not _stands(history, half):
        return False
    rises = climbs(settled) and targets_known(run)
    if not rises and _gradient_grows(run, history, half):
        return False
    if rises or (raised and noisy):
        return True
    surely = length - signals.median_error(over)
    if surely >= beyond:  # a loss above its start that no update raised is another player's doing
        settles = optimizer.adaptive(run) and curved < 1  # where such an optimizer goes by itself, each step is as long
        return raised or (history.end < history.start and not settles)
    if optimizer.adaptive(run):
        return curved >= past and surely >= far
    early = abs(history.start)
    if total < 1:  # not for sure: the first batch's loss alone may be a low one
        early = max(early, signals.level(history.values[: history.window]))
    return near and opposed and history.end >= nothing * early


def began_past(
    run: Run, estimates: np.ndarray, ratios: np.ndarray, *, first: int = 10, past: float = PAST, learned: float = 0.1
) -> float:
    """The largest stability ratio of the `first` updates of an adaptive optimizer, if they were so far past the limit
    that a network was thrown where it learns next to nothing from its inputs; else 0."""
    begun = ratios[estimates <= first]
    if not optimizer.adaptive(run) or not len(begun) or not np.nanmax(begun) >= past:
        return 0.0
    found = explained_late(run)
    return float(np.nanmax(begun)) if found.share + 2 * found.error < learned else 0.0


def _gradient_grows(run: Run, history: signals.Loss, since: int, *, by: float = 1.1) -> bool:
    """Motion around a minimum has a gradient as long as ever. One that grows under a loss that stands is of a loss that
    becomes another one, as a mean over ever fewer examples does."""
    norms = signals.inside(run, "grad_norm", since, history.last_step)
    if len(norms) < 20:
        return False
    longer = signals.trend(np.log(np.maximum(norms, np.finfo(float).tiny)))
    return longer.z < -3 and -longer.drop > np.log(by)


def _held_up_at_most(run: Run, since: int) -> float:
    """Median of |g| |u| / (4 r): along an update u the loss can fall by -g'u / (4 r), to its minimum."""
    steps, over = steps_made.overshoots(run)
    table = run.table("scalars", ["step", "grad_norm", "update_norm"]).set_index("step").loc[steps]
    norms = (table["grad_norm"] * table["update_norm"]).to_numpy()
    late = (steps >= since) & (over > 0)
    return signals.median(norms[late] / (4 * over[late]))


def _more_than_chance(count: int, of: int, chance: float = 0.05, level: float = 0.01) -> bool:
    """Whether `count` events `of` so many are more than a rare one's binomial frequency allows."""
    tail = 1 - sum(math.comb(of, k) * chance**k * (1 - chance) ** (of - k) for k in range(count))
    return tail < level
