r"""A ravine: ill-conditioned curvature.

## What it is
A long, narrow valley. Across it the loss curves steeply, along it hardly at all. The steep walls dictate a small
step, and with that step progress along the floor is slow.

## What we look at
Whether the learning rate is pinned by the steepest direction ($s$ not small, or the largest stable rate would still
be too slow along the floor), how much flatter the direction is in which the weights really move, $\kappa =
\lambda_{\max}\,\|u\|^2/(u^\top\mathbf H u)$ for the recent displacement $u$, how much of the gradient lies along
curvature below $\lambda_{\max}/100$, and whether at this rate a tenfold shrink along the floor takes longer than
the run. For a linear model under its own gradient the quadratic picture is exact, and it is enough that a good part
of the loss is still to be had along the floor. Where the noise of small batches throws the weights across the
valley, the displacement does not show the floor; the gradients of independent batches do, by $\sum_i
g_i^2/(2\lambda_i)$ over the eigenvectors flatter than $\lambda_{\max}/100$, and in a linear model the inputs' own
means and deviations (before hidden units, deviations that are a hundredfold apart, or means ten of them from zero; a
tenth of both where a linear model of the same inputs does better, which says that the units have not made up for them).
Logistic units show themselves by one eigenvalue that stands far above the next, because their mean adds
$\mathbf m\mathbf m^\top$ to the next layer's second moments: the loss then comes down along directions that this one
holds back. And whether a run goes straight on along a flat direction and stands still, at any stable rate, where
weights that moved by their own size would change the loss by a good part. For Adam and RMSprop all of it is measured on
the Hessian they see. The cause comes from the inputs and activations.

## Why it happens
In the eigenbasis each coordinate is multiplied by $(1 - \alpha\lambda_i)^k$. Stability needs $\alpha <
2/\lambda_{\max}$, so $\alpha\lambda_i < 2\lambda_i/\lambda_{\max}$: the condition number $\kappa =
\lambda_{\max}/\lambda_{\min}$ sets the speed. For a linear layer $\bar w_j = \bar y\,x_j$, so features of unequal
size, or far from zero mean, make the Hessian ill-conditioned: its eigenvalues are those of the inputs' second
moments.

*Weight scale*: the units in which weights are counted change the condition number as those of inputs do. A volume of
15,000 ml beside a rate of 0.1 an hour has a gradient a thousand times smaller than one of 15 l, a curvature a million
times smaller, and a thousand times as far to go.

## What to try
Centre and scale the inputs, $\tilde x_j = (x_j - \mu_j)/\sigma_j$; batch normalization or tanh instead of
logistic units inside the net; momentum, which needs about $\sqrt\kappa$ steps where gradient descent needs
$\kappa$; Adam.

## When this is wrong
Networks have many near-zero eigenvalues that do not matter; they are silent unless the gradient lies there and
the rate is pinned. Momentum or Adam may cross a ravine well: silent too. The displacement shows the direction
being moved in, not the flattest one, so $\kappa$ is a lower bound. A loss in its flat region (a softmax or logistic
output thrown far by inputs near 1000) has no curvature, and nothing is said about the inputs that threw it there.
Whether centred units would have served a network of logistic ones better is inferred from the spectrum, not tried.

## In the lecture
*Ill-conditioned curvature* (all four parts), *Momentum*, *Ravines*, *RMSprop and Adam*.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _ravine_words as words
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules import _weight_scales as weight_scales
from diagnostics.rules._below_linear import is_behind_linear
from diagnostics.rules._explained import explained_late
from diagnostics.rules._finding import Finding
from diagnostics.rules._mean_mode import mean_mode_of_logistic_units
from diagnostics.rules._raw_inputs import weights_before_batch_norm
from diagnostics.run import Run

KIND = words.KIND
RANK = 11
OF_PACE = True
LITTLE = 0.01  # of the loss: less is not worth another optimizer
GOOD_PART = 0.3  # of the loss
FLAT = 100.0  # times less than the steepest direction: what counts for the flat share of the gradient
EXACTLY = 0.1  # of the loss, still to be had along the floor, where the quadratic picture is exact
BEHIND = 0.1  # of the loss of a constant answer, surely: what a linear model has and the network has not
SCALES = 100.0  # of squares: inputs of a tenfold difference in size
DECADES = 0.5  # of the run for a tenfold shrink of the distance, a hundredfold of the loss: four decades in all


def check(
    run: Run,
    *,
    pinned: float = words.PINNED,  # stability ratio
    raisable: float = 0.05,  # stability ratio: below, ten times the rate is the first thing to try
    narrow: float = 100.0,  # condition number: one percent of the steepest direction's speed
    shallow: float = 10.0,  # where the quadratic picture is exact: below, momentum gains less than a factor of three
    floor: float = 0.5,  # share of the squared gradient along curvature below a hundredth of the largest
    gained: float = 0.5,  # of the loss since the steepest direction had settled: a run this far along is not held up
    left: float = 0.3,  # of that gain (of the loss, for a linear model), still to be had along the floor
    wide: float = 10.0,  # condition number of the inputs that counts as a cause
    scatter: float = 5.0,  # of a network's condition number from one path to the next: one estimate may be off by it
) -> Iterator[Finding]:
    table = signals.curvature(run)
    history = signals.loss(run)
    steps_made.stability(run)
    if history.count < 20:
        return
    late = _since(run, table, history)
    if late.empty:
        raise signals.Missing("curvature: no estimate in the last two thirds of the run")
    condition = _condition(run, history, late)
    share = signals.median(signals.array(late, "flat_gradient_share"))
    if not np.isfinite(condition) and not np.isfinite(share):
        raise signals.Missing("curvature.condition: no displacement was measured between estimates")
    ratio = signals.median(signals.array(late, "stability"))
    raised = min(1.0, ratio / pinned)
    if not ratio >= raisable:  # unless that is not enough by far
        spread = _unlearned(run, history, late, raised, gained)
        offer = weight_scales.stands_still(run, history, late)
        if spread is not None:
            yield words.of_the_inputs(run, history, late, spread)
        elif offer is not None:
            yield weight_scales.finding(KIND, run, history, late, offer)
        return
    first = int(table["step"].to_numpy()[signals.array(table, "stability") >= min(pinned, ratio)].min())
    mean_mode = mean_mode_of_logistic_units(run, history, table, wide)
    exact = quadratic.exact(run)
    patience, narrow = (DECADES, shallow) if exact else (1.0, narrow)
    surely = condition if np.isfinite(condition) else FLAT
    if len(late) == 1 and not exact:
        patience *= scatter
    fastest = 1.0 if ratio >= pinned else ratio  # below, what the rate could still be raised by is taken into account
    slow = limits.steps_along(late, surely) * fastest >= patience * history.count
    if (condition > narrow or share > floor) and slow and _held_up(run, history, late, condition, left, gained):
        cause = "uncentered-activations" if mean_mode else _cause(run, wide)
        yield words.along_the_floor(run, history, late, cause, first, surely)
        return
    spread = _unlearned(run, history, late, raised, gained)
    if spread is not None:
        yield words.of_the_inputs(run, history, late, spread)
        return
    hidden = _hidden(run, history, late, raised, left)
    if hidden > narrow:
        yield words.along_the_floor(run, history, late, _cause(run, wide), first, hidden)
    elif mean_mode and ratio >= pinned:
        yield words.below_the_mean_mode(run, history, mean_mode, first)


def _hidden(run: Run, history: signals.Loss, late: pd.DataFrame, raised: float, left: float) -> float:
    """Condition number of a linear model's ravine whose floor the weights do not show, because the noise of the batches
    throws them across the valley all the time; NaN if there is none.

    What is left along the floor comes from gradients of independent batches, two standard errors down. Where the loss
    is no quadratic, the inputs must make the ravine as well.
    """
    table = _since(run, run.table("batches"), history)
    surely = signals.array(table, "flat_gain") - 2 * signals.array(table, "flat_gain_error")
    if not signals.median(surely) >= left * abs(history.end):
        return np.nan
    if not quadratic.exact(run) and _stretched(run, history, late, raised) is None:
        return np.nan
    condition = signals.median(signals.tops(late)) / signals.median(signals.array(table, "flat_curvature"))
    return condition if limits.steps_along(late, condition) * raised >= history.count else np.nan


def _unlearned(
    run: Run, history: signals.Loss, late: pd.DataFrame, raised: float, gained: float
) -> conditioning.Spread | None:
    """Inputs that make a ravine so long that the run has hardly begun along its floor; else `None`.

    Across the valley lies the largest feature, or what all inputs have in common; whatever else there is to learn from
    them lies along the floor, and the loss that is left still falls, or nothing was learned at all.
    """
    if signals.of_both_signs(history.values):
        return None
    falling = history.late_trend
    settled = history.values[history.count // 3 :][: history.window]  # the largest feature throws a start far up
    held_up = history.end > (1 - gained) * signals.level(settled)
    early = min(abs(history.start), signals.level(history.values[: history.window]))  # one batch's loss is noise
    left = (falling.z > 3 and falling.relative > LITTLE) or history.end > signals.NOTHING * early
    spread = _stretched(run, history, late, raised) if held_up else None
    if spread is not None and run.meta["linear_model"] and not _falls_as_along(run, history, late, spread, falling):
        return None
    hopeless = not run.meta["linear_model"] and history.end > (1 - gained) * signals.untrained(run)
    return spread if left or hopeless else None


def _falls_as_along(
    run: Run, history: signals.Loss, late: pd.DataFrame, spread: conditioning.Spread, falling: signals.Trend
) -> bool:
    """Whether a good part of a linear model's loss may lie along the floor, where it falls at a known pace: a tenfold
    shrink of the distance is a hundredfold one of the loss. (The medians compared lie a quarter of the run apart.)
    There is something, too, where the same answer to every input has a lower loss."""
    found = explained_late(run)
    if found.share + 3 * found.error < 0 or not optimizer.at_full_rate(run, history.steps[history.count // 2 :]).all():
        return True
    whole = 1 - 100 ** (-history.count / 4 / limits.steps_along(late, spread.condition))
    return falling.drop + 2 * falling.error >= GOOD_PART * whole * abs(history.end)


def _stretched(
    run: Run,
    history: signals.Loss,
    late: pd.DataFrame,
    raised: float,
    *,
    times: float = 10.0,
    apart: float = 1e4,
    away: float = conditioning.AWAY,
) -> conditioning.Spread | None:
    """Inputs whose scale or mean makes a tenfold shrink along the floor take `times` as long as the run, were the rate
    raised to where it is pinned; else `None`.

    Hidden units can undo a mean and some of the scale: for them only scales a hundredfold `apart` count (squared), or
    inputs so far `away` from zero, in deviations, that a unit hardly ever bends within the data. Where a linear model
    of the same inputs does better they have not undone it, and once as long as the run is too long. An optimizer that
    rescales coordinates undoes scales, and no mean; a batch norm undoes what comes to it.
    """
    spread = conditioning.spread(run)
    if spread is None or spread.cause == "correlated-inputs":
        return None
    adaptive, hidden_units = optimizer.adaptive(run), not run.meta["linear_model"]
    if hidden_units and is_behind_linear(run, history.middle_step, seen=BEHIND):
        times, apart, away = 1.0, SCALES, 1.0
    if spread.cause == "feature-scale":
        undone = adaptive or (hidden_units and spread.scale < apart) or weights_before_batch_norm(run) < 1
    else:
        undone = ((adaptive or hidden_units) and spread.away < away) or weights_before_batch_norm(run) < 2
    if undone:
        return None
    if not hidden_units and not _steady(history):
        spread = replace(spread, bias=1.0)  # what it is slow in has been learned, or there is nothing
    slow = limits.steps_along(late, spread.condition) * raised >= times * history.count
    return spread if slow else None


def _steady(history: signals.Loss, *, as_fast: float = 0.7) -> bool:
    """Whether the later half falls as much as the half from a tenth of the run on, as far slower directions make it:
    what is faster slows down."""
    tenth, half = history.count // 10, history.count // 2
    before, after = map(signals.trend, (history.values[tenth : tenth + half], history.values[-half:]))
    return after.z > 3 and after.drop >= as_fast * before.drop


def _since(run: Run, table: pd.DataFrame, history: signals.Loss, *, high: float = 0.5) -> pd.DataFrame:
    """Without the first third of the run, if there is more, and without the tail of a schedule, at less than half the
    highest rate, where everything is slow; only a quadratic's curvature is at the start what it is later."""
    table = table.loc[optimizer.at_full_rate(run, table["step"].to_numpy(), high)]
    late = table.loc[table["step"] >= history.steps[0] + history.count // 3]
    return table.tail(1) if late.empty and quadratic.exact(run) else late


def _condition(run: Run, history: signals.Loss, late: pd.DataFrame) -> float:
    """Median over the estimates; where the picture is exactly quadratic the last, since the path only turns to flatter
    directions, or what the updates say where the last estimate is old.

    In a linear model curvature along the updates that seems to be zero or negative is positive but lost in float32's
    rounding: the condition number is then at least one over its precision.
    """
    values = signals.array(late, "condition")
    if run.meta["linear_model"]:
        values = np.minimum(values, 1 / np.finfo(np.float32).eps)
    values = values[np.isfinite(values) & (values > 0)]
    if not quadratic.exact(run):
        lesser = (len(values) - 1) // 2  # of two that differ
        return float(np.sort(values)[lesser]) if len(values) else np.nan
    half = history.middle_step
    last = float(values[-1]) if len(values) else np.nan
    if int(late["step"].iloc[-1]) >= half:
        return last
    return float(np.fmax(last, quadratic.condition(run, half, history.last_step)))


def _held_up(
    run: Run, history: signals.Loss, table: pd.DataFrame, condition: float, left: float, gained: float
) -> bool:
    """Most of the loss that stood when the steepest direction had settled is still there, and can still be gained.

    Where the quadratic picture is exact, the share of the loss that is left along the floor decides by itself.
    """
    settled = float(history.values[history.count // 20])
    gain = quadratic.left(run, history, condition, signals.median(signals.tops(table)))
    if not history.late_trend.z > 3 or gain < LITTLE * abs(history.end):
        return False
    if quadratic.exact(run) and gain >= EXACTLY * abs(history.end):
        return True
    return history.end > (1 - gained) * settled and not gain < left * (settled - history.end)


def _cause(run: Run, wide: float) -> str:
    """The largest of the condition numbers that inputs and activations make by themselves."""
    spread = conditioning.spread(run)
    inputs = spread.largest if spread is not None else 1.0
    _, activations = conditioning.logistic_offset(run)
    if max(inputs, activations) < wide:
        return "intrinsic"
    return spread.cause if spread is not None and inputs >= activations else "uncentered-activations"


def explains(finding: Finding, other: Finding) -> bool:
    return other.kind in {"lr-too-small", "lr-oscillation", "local-minimum", "plateau"} and other.cause not in {
        "double-softmax",
        "momentum",
    }
