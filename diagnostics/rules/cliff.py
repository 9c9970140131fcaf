r"""A cliff: the gradient jumps by orders of magnitude.

## What it is
The loss surface has an almost vertical wall. One step from the flat part lands on it, the gradient there is
hundreds of times larger than anything before, and one update along it throws the weights far away.

## What we look at
The gradient norm before clipping. A cliff is a jump by two orders of magnitude within one or two updates, over the
largest norm of the updates before it, while the learning rate fitted the curvature measured there ($s \le 1$), and the
damage lasts, or a twentieth of the run goes by at twice the loss that it began with, or the jumps come back.

## Why it happens
Where many factors are multiplied - a recurrent net over many time steps, a deep product of weights - the output
behaves like $w^T$ and its derivative like $T w^{T-1}$: nearly zero for $|w| < 1$, and enormous just above it.
Gradient descent assumes the second-order picture of one point, which says nothing about a wall a step away.

## What to try
Clip the gradient's norm, which keeps the direction and bounds the step. Then gated or residual architectures, or
orthogonal initial weights, which keep the product near 1.

## When this is wrong
One outlier batch makes one jump without lasting damage and is not reported. Jumps from which the loss comes back at
once, as where longer sequences or new data begin, are information, and so are those that clipping made no longer than
other updates. Where the loss itself becomes another one, as by a term that is added to it, it rises by ten times what
the last update could do along such a gradient, and nothing is reported. An unstable learning rate grows over several
updates and has $s > 1$ before; that is reported as such. A gradient that was as long at some time before, as where a
policy is all but sure and one draw in a hundred surprises it, is no wall, and nothing is reported.

## In the lecture
Named in *Features of the Optimization Landscape*, which leaves it to a later lecture. Source: Pascanu, Mikolov and
Bengio, "On the difficulty of training recurrent neural networks" (2013), section 2.3.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._betas import swapped_betas
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._growth import by_noise_alone, refuted
from diagnostics.rules._instability_words import clip_at, trusts_its_steps
from diagnostics.rules._moving import is_moving
from diagnostics.rules._words import number
from diagnostics.run import Run

KIND = "cliff"
RANK = 3
USUAL = 50  # updates before a jump that tell what is usual


def check(
    run: Run,
    *,
    jump: float = 100.0,  # over the median norm before it: orders of magnitude
    above: float = 10.0,  # over the largest norm before it: heavy-tailed batch noise stays within ten
    before: int = 5,  # updates that must have been recorded before, to know what was usual
    within: int = 3,  # updates: what was measured closer to the jump belongs to the wall already
    recurrences: int = 3,  # jumps that make a wall out of what one or two odd batches could do
    spent: float = 0.05,  # of the run, up on the wall: time lost
) -> Iterator[Finding]:
    steps, norms = signals.column(run, "grad_norm_unclipped")
    if not len(steps):
        steps, norms = signals.column(run, "grad_norm")
    if trusts_its_steps(run) or swapped_betas(KIND, run):  # steps of any length
        return
    if len(steps) < before + 1:
        raise signals.Missing(f"scalars.grad_norm: {len(steps)} recorded, {before + 1} needed")
    found = _jumps(norms, jump, above, before)
    changed = [
        at
        for at in found
        if _other_data(run, int(steps[at]))
        or any(_another_loss(run, int(steps[n]), float(norms[n])) for n in (at - 1, at))
    ]
    found = [
        at
        for at in found
        if _fitted(run, int(steps[at]), within)
        and not _rate_jumped(run, int(steps[at]))
        and not any(0 <= at - each <= USUAL for each in changed)  # what is usual was seen before that
    ]
    if not found or _towered(run, int(steps[found[0]]), within):  # walls in the ruins of something else
        return
    first = found[0]
    if norms[first] <= np.nanmax(norms[: max(1, first - 1)]):
        return  # as steep as slopes that were gone down before: rare examples make such a gradient late in a run
    harm = _lasting_harm(run, int(steps[first])) and not is_moving(run)  # whose height says nothing
    held = not harm and _held(run, steps[found], above)
    if not harm and len(found) < recurrences and (held or _thrown_up(run, int(steps[first])) < spent):
        return
    costly = harm or (not held and _up(run, int(steps[first])) >= spent)
    usual = float(np.nanmedian(norms[max(0, first - USUAL) : first]))
    peak = float(norms[first])
    yield Finding(
        kind=KIND,
        cause=None,
        severity="critical" if harm else "warning" if costly else "info",
        first_step=int(steps[first]),
        last_step=None if harm else int(steps[found[-1]]),
        layers=(),
        summary=(
            f"At step {int(steps[first])} the gradient norm jumped from {number(usual)} to {number(peak)} "
            f"in at most two updates{_known(run, int(steps[first]) - within)} ({len(found)} such "
            f"jump{'s' if len(found) > 1 else ''})."
            f"{' Clipping made these updates no longer than others.' if held else ''}"
        ),
        evidence={"usual gradient norm": usual, "gradient norm at the jump": peak, "jumps": float(len(found))},
        remedies=(
            *([] if held else [clip_at(usual)]),
            "keep the product of factors near 1: orthogonal initial weights, gates (LSTM, GRU) or residual connections",
        ),
        charts=(
            Chart("line", "scalars", ("grad_norm_unclipped", "grad_norm"), "Gradient norm", log=True),
            LOG_LOSS,
        ),
    )


def _jumps(norms: np.ndarray, jump: float, above: float, before: int) -> list[int]:
    """Indices where the norm exceeds `jump` times the median and `above` times the largest of the 50 updates before the
    last two."""
    known = pd.Series(np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)).rolling(USUAL - 1, min_periods=1)
    values = np.where(np.isfinite(norms), norms, np.inf)
    highest = values > above * known.max().shift(2).to_numpy()
    if not highest.any():  # as in most runs, and far quicker to see than the medians
        return []
    found: list[int] = []
    last = -3  # the last update on the wall: as long as it stays there it is one jump
    for at in np.flatnonzero(values > jump * known.median().shift(2).to_numpy()).tolist():
        if at >= before and at - last >= 3 and (found or highest[at]):
            found.append(at)
        last = at if found else last
    return found


def _fitted(run: Run, step: int, within: int, *, recent: int = 3) -> bool:
    """Whether most of the last stability ratios from before the wall were within the limit, or none is known."""
    table = run.table("curvature", ["step", "stability"])
    steps, ratios = table["step"].to_numpy(), signals.array(table, "stability")
    earlier = np.flatnonzero((steps <= step - within) & ~np.isnan(ratios))[-recent:]
    past = (ratios[earlier] > 1) & ~refuted(steps[earlier], ratios[earlier], step - within)
    return not past[-1:].any() and 2 * int(past.sum()) < max(len(past), 1)


def _known(run: Run, until: int) -> str:
    measured = np.isfinite(signals.latest(run, "curvature", "stability", until))
    return ", though the learning rate fitted the curvature before it" if measured else ""


def _towered(run: Run, step: int, within: int, *, soon: int = 50) -> bool:
    """Whether the loss had grown tenfold before the wall: what a ratio past the limit foretells. Not if it had come
    back, and is higher soon after: what is lower is an echo."""
    history = signals.loss(run)
    before = history.values[history.steps <= step - within]
    towers = np.flatnonzero(before > 10 * abs(history.start))
    if not len(towers):
        return False
    back = signals.level(before[towers[-1] + 1 :]) <= history.start
    return not (back and history.after(step)[:soon].max() > before[towers].max())


def _rate_jumped(run: Run, step: int, *, times: float = 2.0) -> bool:
    """Whether the schedule raised the rate right before: then it was the step that was huge, not the wall."""
    steps, rates = optimizer.learning_rates(run)
    before, near = rates[steps < step - 5], rates[(steps >= step - 5) & (steps <= step)]
    return bool(len(before) and len(near)) and near.max() > times * float(np.median(before[-20:]))


def _other_data(run: Run, step: int, *, least: int = 5, times: float = 3.0) -> bool:
    """Whether the inputs since are not those from before: the sizes of their features moved by far more than from one
    batch to the next, as where another task begins."""
    steps, _, sizes = run.matrix("inputs", "batch_rms")
    moved = np.linalg.norm(np.diff(sizes, axis=0), axis=1)
    at = int(np.searchsorted(steps, step)) - 1  # the last record before
    return least <= len(moved) > at >= 0 and bool(moved[at] > times * np.median(moved))


def _another_loss(run: Run, step: int, norm: float, *, times: float = 10.0) -> bool:
    """Whether the loss rose by far more than the update before could lift it along the steepest gradient in sight: not
    the weights came to a wall, but a term came to the loss, or other data."""
    table = run.table("scalars", ["step", "loss", "grad_norm", "update_norm"])
    table = table.loc[table["step"] <= step]
    received, loss = signals.array(table, "grad_norm")[-50:-1], signals.array(table, "loss")[-50:]
    update = float(table["update_norm"].iloc[:-1].dropna()[-10:].max())  # of the last that were measured
    usual = signals.median(received)
    if len(loss) < 5 or not update > 0 or not np.isfinite(norm) or not usual > 0:
        return False
    longest = update * max(1.0, float(received[-2:].max()) / usual)
    return bool(loss[-1] - signals.level(loss[:-1]) > times * longest * norm)


def _lasting_harm(run: Run, step: int) -> bool:
    """The loss after the jump stays above what had been reached before it, by more than its noise."""
    history = signals.loss(run)
    before, after = history.values[history.steps < step], history.after(step)
    if len(before) < 5 or len(after) < 2:
        return False
    reached = np.median(np.lib.stride_tricks.sliding_window_view(before, 5), axis=1)
    known = reached[np.isfinite(reached)]
    if not len(known):
        return False
    usual = float(known.min())
    tail = after[-max(2, len(after) // 4) :]
    return signals.level(tail) > usual + 5 * signals.step_noise(before) + 0.1 * abs(usual)


def _held(run: Run, steps: np.ndarray, above: float) -> bool:
    """Whether all these jumps were clipped to what batch noise makes of a gradient: they do no more than any batch."""
    table = run.table("scalars", ["step", "grad_norm", "grad_norm_unclipped"]).dropna()
    before = signals.array(table.loc[table["step"] < steps[0]], "grad_norm")[-50:]
    received = signals.array(table.loc[np.isin(table["step"].to_numpy(), steps)], "grad_norm")
    if len(received) < len(steps) or not len(before):
        return False
    return bool((received <= above * np.median(before)).all())  # unclipped they are a hundred times what was usual


def _thrown_up(run: Run, step: int) -> float:
    """Share of the run, since the jump, in which the loss stood above twice its start: more than an odd batch costs."""
    history = signals.loss(run)
    return float((history.after(step) > history.start + abs(history.start)).sum()) / history.count


def _up(run: Run, step: int, *, part: float = 0.1) -> float:
    """Share of the run since the jump in which the loss stood above its level before, by a tenth of the starting one:
    where new data, as longer sequences, make the gradient jump, a few updates. Less what hard batches do anyway."""
    history = signals.loss(run)
    before, after = history.values[history.steps < step], history.after(step)
    recent = before[-50:]
    high = signals.level(recent) + part * abs(history.start)
    return max(0.0, float((after > high).sum() - len(after) * (recent > high).mean()) / history.count)


def explains(finding: Finding, other: Finding) -> bool:
    """What follows the jump follows from it, the growth that its first updates look like included."""
    if other.kind in {"wiring", "symmetry"}:
        return False
    if other.kind == "lr-unstable" and other.cause == "schedule":  # a rate that was being raised
        return False
    if other.kind == "lr-unstable" and by_noise_alone(other):  # a few examples' huge curvature, as before a wall
        return True
    return other.first_step >= finding.first_step - 5 or other.kind in {"lr-oscillation", "plateau", "saddle-point"}
