"""Updates that are not made, are taken back, or forget what the optimizer was to remember."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import LITTLE, explained_late
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run

ENOUGH = 3  # times that weights were put back, or looks at whether they are
MANY = 20  # times that they were: more than the folds or trials that one optimizer is watched through
EXACT = 1e-3  # of what the updates did, that is left or taken too much: an outer loop, as of Reptile, keeps a part


def never_steps(
    run: Run,
    *,
    enough: int = 30,  # updates: a loss scale that begins at 2^16 and halves with each overflow has found its place
    part: float = 1 / 3,  # of the run, to its end
    stage: float = 0.2,  # of the run: an optimizer that made more of it may have had a stage of its own
) -> Iterator[Finding]:
    """Not once, or not any more; of an overflow that does not end the scale and the numbers tell."""
    told = signals.events(run, "skipped-step")
    table = run.table("scalars", ["step", "grad_norm", "update_norm"])
    made = np.flatnonzero(~(table["grad_norm"].isna() & (table["update_norm"] == 0)))
    before = int(made[-1]) + 1 if len(made) else 0
    without = len(table) - before
    overflows = told["message"].str.contains("scaler").any() or len(signals.nonfinite_events(run)) > 0
    if told.empty or without < max(enough, part * len(table)) or (before and overflows):
        return
    history = signals.loss(run)
    falls = signals.trend(history.values).z > 5 or signals.has_learned(run)
    if falls:
        when = "the loop" if before else "each update"
        words = (
            ", and the loss falls all the same: another one than was given to watch moves the weights, perhaps one "
            f"that is made anew in {when} and begins without its averages."
        )
    else:
        words = ": the weights stay where they are" + (", or another one moves them." if before else ".")
    yield found(
        "no-step",
        run,
        f"The optimizer made no step in {'the last ' if before else ''}{without} updates{words}",
        _ANOTHER if falls or before else _NONE,
        evidence={"updates without a step": float(without)},
        step=int(table["step"].iloc[before]),
        severity="info" if before > stage * len(table) else "warning" if falls else "critical",
    )


_ANOTHER = (
    "make one optimizer before the loop, not in it, and give the same one to watch",
    "where a library wraps the optimizer, watch the one that it wraps",
)
_NONE = (
    "call optimizer.step() after loss.backward(), on the optimizer that is watched",
    "with a GradScaler: look for infinities, since it leaves out steps whose gradients are not finite",
)


def put_back(run: Run, *, all_of_it: float = 0.95, nothing: float = 0.9) -> Iterator[Finding]:
    """Projections, averages and bounds write to the weights in sound loops too, but those learn; whether a critic does,
    its loss, a difference, cannot tell. What is taken back every so many updates may be meant, as for the next fold,
    task or trial, unless nothing is learned in between."""
    history = signals.loss(run)
    at_looks, at_each = _at_looks(run, all_of_it) or _in_part(run), _at_intervals(run, all_of_it)
    seen = at_each or at_looks
    if seen is None or not (history.values > 0).all():
        return
    still = history.end >= nothing * history.start and bool(at_looks or explained_late(run).is_nothing(LITTLE))
    anew = at_each is not None and _begins_anew(history, seen.steps, nothing)
    if not still and not anew:
        return
    by_mistake = anew and seen.exact and len(seen.steps) >= MANY
    consequence = (
        "what is learned in between is lost, unless it is kept elsewhere, or this is meant, as for the next fold, task "
        "or trial"
    )
    if still:
        consequence = "they go no further" if seen.share >= all_of_it else "they cannot go where the loss falls"
    yield found(
        "weights-put-back",
        run,
        f"{seen.back}. Something besides the optimizer writes to them, and {consequence}.",
        (
            "look for what else writes to the weights in the loop: load_state_dict, copy_ of an average, an "
            "initialization that is called again, a clamp_ that belongs to a Wasserstein critic",
            "copy from the weights into an average or a target network, target.load_state_dict(net.state_dict()), not "
            "back",
        ),
        evidence={"share taken back": seen.share, seen.looks: float(len(seen.steps))},
        step=seen.since,
        severity="critical" if still else "warning" if by_mistake else "info",
    )


@dataclass(frozen=True)
class _Seen:
    back: str
    since: int
    share: float
    steps: np.ndarray
    looks: str  # what the steps are
    exact: bool = False  # each time all of it


def _at_intervals(run: Run, all_of_it: float) -> _Seen | None:
    steps, shares = signals.column(run, "taken_back")
    share = signals.median(shares)
    if len(shares) < ENOUGH or not share >= all_of_it:
        return None
    gap = int(np.median(np.diff(steps)))
    share = min(share, 1.0)  # other weights that are as random as the first ones may lie farther back
    undone = f"{number(100 * share)} % of what the updates since the last time did to them is undone"
    since = max(1, int(steps[0]) - 2 * gap)  # two before told when the first that was seen would come
    exact = bool((np.abs(shares - 1) < EXACT).all())
    return _Seen(f"Every {gap} updates the weights are put back: {undone}", since, share, steps, "times seen", exact)


def _at_looks(run: Run, all_of_it: float) -> _Seen | None:
    """Between two updates that are measured, whenever these are."""
    steps, shares = signals.column(run, "undone")
    share, several = signals.median(shares), shares[shares >= 2]  # updates at once, as by a checkpoint
    if len(shares) < ENOUGH:
        return None
    if share >= all_of_it:
        back = f"The weights are put back between two updates: {number(100 * share)} % of an update is undone"
    elif len(several) >= 2 and shares.mean() + 2 * shares.std(ddof=1) / len(shares) ** 0.5 >= all_of_it:
        most = number(float(several.max()))
        looks = f"at {len(several)} of {len(shares)} looks"
        back = f"The weights are put back between two updates: up to {most} updates are undone at once, {looks}"
    else:
        return None
    return _Seen(back, int(steps[0]), max(share, float(shares.mean())), steps, "measured pairs")


def _in_part(run: Run, *, part: float = 0.25, least: float = 0.1) -> _Seen | None:
    """A good part of each update, as by a bound that most of the weights have come to. A discriminator's loss may stay
    where it is beside a generator that learns."""
    steps, shares = signals.column(run, "undone")
    share = signals.median(shares)
    if len(shares) < ENOUGH or not share >= part or not shares.min() >= least or run.meta["trained_beside"]:
        return None
    known = explained_late(run)
    if known.share - 2 * known.error > 0:  # something is learned for sure, of a task that may be noisy
        return None
    back = f"The weights seem to meet a bound: between two updates {number(100 * share)} % of an update is taken back"
    return _Seen(back, int(steps[0]), share, steps, "measured pairs")


def _begins_anew(history: signals.Loss, steps: np.ndarray, nothing: float) -> bool:
    """Whether the loss is as high as in the beginning where weights were put back, or each time higher than it was, as
    where the targets change as well."""
    at = np.flatnonzero(np.isin(history.steps, steps))
    if signals.median(history.values[at]) >= nothing * history.start:
        return True
    after, before = history.values[at], history.values[at - 1]
    rise = after - before
    sure = rise.mean() > 5 * rise.std(ddof=1) / len(rise) ** 0.5
    return bool(sure) and float(np.median(before)) < nothing * float(np.median(after))


def unstored(run: Run) -> Iterator[Finding]:
    told = signals.events(run, "state-unstored")
    if told.empty:
        return
    names, step = str(told["subject"].iloc[0]), int(told["step"].iloc[0])
    yield found(
        "state-unstored",
        run,
        (
            f"What the optimizer keeps of each weight ({names}) is still zero after {step} updates with a "
            "gradient: what each step computes is not stored, and the next begins from nothing. There is no "
            "momentum, and no average to divide by."
        ),
        (
            "in the optimizer's step write to the state: state['m'].mul_(b1).add_(grad, alpha=1 - b1), or "
            "state['m'] = m; m = b1 * m + ... makes a new tensor and leaves the stored one as it is",
        ),
        step=step,
        severity="warning",
    )


def state_lost(
    run: Run,
    *,
    short: int = 20,  # updates: twice what Adam's first average remembers, 1 / (1 - 0.9)
    enough: int = 5,  # times seen: twice may be a stage that begins, or a task
) -> Iterator[Finding]:
    """By the optimizer's own count of steps, which begins at one with its averages."""
    steps, counts = signals.column(run, "remembered_steps")
    if len(counts) < 2 or steps[-1] - steps[0] < short * enough or counts.max() > short:
        return
    gaps = np.diff(steps)
    near = (gaps > 1) & (gaps <= short)  # what lies farther apart cannot tell how often
    most = float(counts.max())
    if near.sum() < enough or not (counts[1:] <= gaps)[near].all():
        return
    yield found(
        "state-lost",
        run,
        (
            f"The optimizer forgets its averages every few updates: by its own count they are made of {number(most)} "
            f"{'step' if most == 1 else 'steps'} at most, after {signals.total(run)} updates. "
            "Each step then follows the last gradients alone, whose noise nothing averages, and is as long for a small "
            "gradient as for a large one."
        ),
        (
            "call optimizer.load_state_dict(...) once, when a run is resumed, and neither it nor "
            "optimizer.state.clear() in the loop",
            "to begin again with other rates write to them: for group in optimizer.param_groups: group['lr'] = ...",
        ),
        evidence={"steps remembered": most, "updates": float(signals.total(run))},
        step=int(steps[0]),
        severity="warning" if most <= 2 else unless_it_learns(run, "warning"),  # tasks of some steps each may be meant
        chart=Chart("line", "scalars", ("remembered_steps",), "Steps that the optimizer's averages are made of"),
        formula=r"\hat m_1 / \sqrt{\hat v_1} = g / \lvert g\rvert = \pm 1",
    )
