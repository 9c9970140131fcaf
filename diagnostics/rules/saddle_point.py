r"""Held up at a saddle point.

## What it is
A point where the gradient is (nearly) zero although it is no minimum: the loss curves upwards in some directions
and downwards in others. Progress stops until the weights have drifted far enough along a downward direction.

## What we look at
A stretch in which the loss does not move although it is not at its floor, while the smallest eigenvalue of the Hessian
is clearly negative - beyond twice its residual, and beyond twice its standard error on independent batches - and the
gradient is close to zero: followed at the largest stable rate for the whole stretch, it would have taken less than a
fifth off the loss. The stretch must not be longer than thirty times $\tau = 1/(\alpha\,|\lambda_{\min}|)$, the updates
in which the distance from the saddle grows by a factor $e$. Where it is longer than $\tau$, and the loss curves
downwards along the path itself, the negative curvature has set the pace, and the gradient is followed at the run's own
rate: around a saddle all curvature is small, and the largest rate that is stable there would not be later. So it is
where, on independent batches, the loss surely curves downwards half as much as upwards and nothing of the gradient is
common to them. Where it is longer than $5\tau$ and the loss curves upwards along the updates, something else holds it -
unless weights of some layer grow by a factor $e$ every $\tau$, as they do while a saddle point is left. L-BFGS may make
no step at all there: it takes a gradient whose largest entry is below its tolerance for zero.

## Why it happens
At a critical point $\mathcal J(\theta) \approx \mathcal J(\theta_0) + \tfrac12(\theta-\theta_0)^\top\mathbf
H(\theta-\theta_0)$. Along an eigenvector with $\lambda < 0$ gradient descent multiplies the distance from the
saddle by $1 + \alpha|\lambda|$ a step: exactly on it we are stuck, slightly to the side we get unstuck, but
slowly. Small initial weights in a deep net start near the saddle at the origin.

## What to try
Start farther away: larger initial weights (Kaiming or Xavier scale). A larger learning rate or momentum shortens
the escape in proportion. If units are identical, break the symmetry first.

## When this is wrong
Every network has slightly negative eigenvalues; they are silent unless the loss stands still. Where no curvature
estimate fell into the flat stretch, nothing is said. A start that is left within a fifth of the run is not counted.

## In the lecture
*Saddle points*.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules import _stretches as stretches
from diagnostics.rules._charts import GRADIENT_NORM, LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._never_reached import LEADS_TO
from diagnostics.rules._verdict import HARDLY_LEARNED
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

KIND = "saddle-point"
RANK = 9
OF_PACE = True
STEEP = 0.5  # of the largest eigenvalue: it curves down as it curves up, as no valley's floor does
TOO_SMALL = 0.003  # of the largest stable rate: ten times as much would still be thirty times below it
MEASURED = 4  # updates in each part of a stretch whose growth is compared


def check(
    run: Run,
    *,
    longest: float = 0.2,  # of the run, without progress: shorter waits cost less than a fifth
    clearly: float = 0.05,  # of the largest eigenvalue; trained networks have -0.01 of it everywhere
    near: float = 0.2,  # of the loss: what the gradient would take off it at the largest stable rate meanwhile
    patience: float = 30.0,  # escape times; rounding errors alone have grown to order one by then
    grown: float = 5.0,  # escape times: what leads away has grown 150-fold, and updates that curve upwards go elsewhere
) -> Iterator[Finding]:
    signals.curvature(run)
    history = signals.loss(run)
    if history.count < 20:
        return
    for stretch in stretches.flats(run):
        if stretch.share >= longest and not _at_floor(history, stretch):
            found = _held(run, stretch, clearly, near, patience, grown)
            if found is not None:
                yield found
                return


def _held(
    run: Run, stretch: stretches.Flat, clearly: float, near: float, patience: float, grown: float
) -> Finding | None:
    """The finding for one flat stretch, if a saddle point explains it."""
    gain = _gain(run)
    found = _negative(run, stretch, clearly, gain)
    if found is None or not gain > 0:  # then it is not the surface that holds it
        return None
    step, smallest, residual, largest, pace = found
    steps, norms = signals.whole_norms(run)
    gradient = signals.median(norms[stretch.holds(steps)])
    escape = float(1 / np.log1p(gain * abs(smallest)))
    waited = stretch.last_step - stretch.first_step + 1
    downhill = gradient**2 * gain * waited
    along, error = _along(run, stretch)
    leaving = pace or _leaving(run, stretch, gain * abs(smallest), gain)
    if waited > grown * escape and along > 2 * error and not leaving:
        return None
    if leaving:
        downhill = min(downhill, _steady(run, stretch, gradient**2) * gain * waited)
    stopped = _makes_no_step(run, stretch)
    told = leaving or stopped or (waited >= escape and _is_steep_and_still(run, stretch))
    ratio = signals.latest(run, "curvature", "stability")
    if not told and (waited < escape or not _downward(run, stretch)):
        if np.isnan(ratio):
            return None  # no largest stable rate is known for this optimizer
        downhill /= max(ratio, np.finfo(float).tiny)
    too_long = waited > patience * escape and gradient > 0 and not stopped  # which does not come away from it at all
    if too_long or not downhill <= near * abs(stretch.level):
        return None
    small = not stopped and ratio < TOO_SMALL
    remedies = (
        "start with larger random weights: torch.nn.init.kaiming_normal_ (or xavier_normal_) on every layer",
        "begin with torch.optim.Adam, and go on with L-BFGS once the loss falls" if stopped else _faster(run),
    )
    return Finding(
        kind=KIND,
        cause=None,
        severity="warning",
        first_step=stretch.first_step,
        last_step=stretch.ended,
        layers=(),
        summary=(
            f"From step {stretch.first_step} to {stretch.last_step} the loss stood at "
            f"{number(stretch.level)} with a gradient norm of {number(gradient)}, "
            f"while the smallest eigenvalue was {number(smallest)}: a saddle point; "
            + (
                f"L-BFGS takes such a gradient for 0 (tolerance_grad = {number(stopped)}) and makes no step."
                if stopped
                else f"the distance from it grows e-fold in {number(escape)} updates"
                + (f" at {number(100 * ratio)} % of the largest stable rate." if small else ".")
            )
        ),
        evidence={
            "smallest eigenvalue": smallest,
            "residual": residual,
            "largest eigenvalue": largest,
            "gradient norm": gradient,
            "loss": stretch.level,
            "measured at step": float(step),
        }
        | ({} if stopped else {"escape updates": escape}),
        remedies=remedies[::-1] if small else remedies,
        charts=(
            Chart("spectrum", "curvature", ("eigenvalues", "smallest"), "Largest and smallest eigenvalues"),
            LOSS,
            GRADIENT_NORM,
        ),
        formula=(
            rf"\nabla\mathcal{{J}} \approx 0 \;(\|\nabla\mathcal{{J}}\| = {tex(gradient)}), \quad "
            rf"\lambda_{{\min}} = {tex(smallest)} < 0 < \lambda_{{\max}} = {tex(largest)}"
        ),
    )


def _faster(run: Run) -> str:
    momentum = ", or use momentum 0.9" if optimizer.momentum(run) == 0 else ""
    return (
        f"raise the learning rate from {number(optimizer.last_rate(run))}{momentum}: the escape gets faster in "
        "proportion to the rate over 1 - momentum"
    )


def _makes_no_step(run: Run, stretch: stretches.Flat) -> float:
    """The gradient's largest entry at which L-BFGS ends a step before it began, where all of the stretch's ended so;
    0 where they did not."""
    updates = signals.inside(run, "update_norm", stretch.first_step, stretch.last_step)
    tolerance = float(optimizer.hyperparameter(run, "tolerance_grad") or 0.0)
    return tolerance if len(updates) >= MEASURED and not updates.any() else 0.0


def _downward(run: Run, stretch: stretches.Flat, *, estimates: int = 3) -> bool:
    """Surely negative curvature along the updates of the stretch's later half. Where they are too short to tell its
    sign: none that is positive along the paths to the last estimates."""
    along, error = _along(run, stretch)
    if abs(along) > 2 * error:
        return bool(along < 0)
    table = signals.curvature(run)
    paths = signals.array(table.loc[stretch.holds(table["step"])], "condition")
    last = paths[~np.isnan(paths)][-estimates:]
    return len(last) == estimates and bool(np.isinf(last).all())


def _leaving(
    run: Run, stretch: stretches.Flat, fastest: float, gain: float, *, folds: float = 2.0, alike: float = 1.5
) -> float:
    """Factors e an update by which weights grow as a saddle point is left, no slower and no faster than its eigenvalue
    says, and `folds` of them within the stretch's later half: whatever the updates of the others do, those set the
    pace. 0 if there are none.

    One batch's smallest eigenvalue is biased down, the quotient of its vector on others up: the rate lies between.
    """
    steps, _, norms = run.matrix("layers", "weight_norm")
    middle = stretch.middle
    inside = (steps >= middle) & (steps <= stretch.last_step)
    if inside.sum() < 2 * MEASURED or not norms.shape[1]:
        return 0.0
    times, logs = steps[inside], np.log(np.maximum(norms[inside], np.finfo(float).tiny))
    halves = np.array_split(np.arange(len(times)), 2)
    rates = [(logs[half[-1]] - logs[half[0]]) / (times[half[-1]] - times[half[0]]) for half in halves]
    quotient = signals.median(signals.array(_tried(run, stretch, ["smallest"]), "smallest"))
    slowest = fastest if np.isnan(quotient) else min(fastest, gain * max(0.0, -quotient))
    steady = np.all([(rate > slowest / alike) & (rate < fastest * alike) for rate in rates], axis=0)
    growing = steady & (logs[-1] - logs[0] >= folds)
    return float(np.mean(rates, axis=0)[growing].max(initial=0.0))


def _tried(run: Run, stretch: stretches.Flat, columns: list[str]) -> pd.DataFrame:
    """What independent batches say of the estimates within the stretch."""
    table = run.table("batches", ["origin", *columns]).dropna()
    return table.loc[stretch.holds(table["origin"])]


def _steady(run: Run, stretch: stretches.Flat, square: float) -> float:
    """The squared gradient without its noise in the later half of a stretch, where batches told them apart; else as it
    was measured."""
    tried = _tried(run, stretch, ["gradient_square"])
    late = tried.loc[tried["origin"] >= stretch.middle]
    return square if late.empty else max(float(late["gradient_square"].mean()), 0.0)


def _is_steep_and_still(run: Run, stretch: stretches.Flat, *, errors: float = 2.0) -> bool:
    """Whether by all independent batches the loss surely curves down at least half as much as up, and what they have in
    common of the gradient is not told from 0."""
    columns = ["smallest", "smallest_error", "largest", "gradient_square", "gradient_square_error"]
    tried = _tried(run, stretch, columns)
    if tried.empty:
        return False
    smallest, _, largest, square, _ = tried[columns].mean()
    off, error = np.hypot.reduce(tried[["smallest_error", "gradient_square_error"]].to_numpy()) / len(tried)
    return bool(-smallest - errors * off >= STEEP * largest > 0 and square <= errors * error)


def _along(run: Run, stretch: stretches.Flat) -> tuple[float, float]:
    """Median overshoot of the updates in the stretch's later half, and its error: below 0 they curve downwards."""
    middle = stretch.middle
    overshoots = steps_made.overshoots_inside(run, middle, stretch.last_step)
    return signals.median(overshoots), signals.median_error(overshoots)


def _at_floor(history: signals.Loss, stretch: stretches.Flat) -> bool:
    """Level at the lowest the run reached, after most of the fall from its start: converged, as far as the run
    shows."""
    fell = history.start - history.best
    return not stretch.escaped and fell > 0.5 * abs(history.start) and stretch.level - history.best <= 0.1 * fell


def _negative(
    run: Run, stretch: stretches.Flat, clearly: float, gain: float
) -> tuple[int, float, float, float, float] | None:
    """Step, smallest eigenvalue, its residual and the largest, at the clearest estimate of the stretch; and the pace at
    which weights leave the saddle point, 0 if independent batches show it.

    Batches that hold few of many rows, as of an embedding, do not: what is smallest for one is flat for the next. The
    pace then tells the eigenvalue of them all.
    """
    table = signals.curvature(run)
    table = table.loc[stretch.holds(table["step"]) & table["smallest"].notna()]
    if table.empty:
        return None
    top, smallest = signals.tops(table), signals.array(table, "smallest")
    residual = signals.array(table, "smallest_residual")
    likely = (smallest + 2 * residual < 0) & (np.abs(smallest) >= clearly * np.fmax(top, 0))
    sure = likely & _confirmed(run, table)
    pace = 0.0
    if likely.any() and not sure.any():
        pace = _leaving(run, stretch, gain * -float(smallest.min()), gain)
        sure = likely & (pace > 0)
    if not sure.any():
        return None
    at = int(np.flatnonzero(sure)[np.argmin(smallest[sure])])
    value = -float(np.expm1(pace)) / gain if pace else float(smallest[at])
    return int(table["step"].iloc[at]), value, float(residual[at]), float(top[at]), pace


def _confirmed(run: Run, table: pd.DataFrame, *, quiet: float = 1e-3) -> np.ndarray:
    """Negative on independent batches too; where none were tried, the loss must be free of batch noise."""
    tried = run.table("batches", ["origin", "smallest", "smallest_error"]).dropna().set_index("origin")
    upper = (tried["smallest"] + 2 * tried["smallest_error"]).to_dict()
    history = signals.loss(run)
    untried = -1.0 if history.noise <= quiet * abs(history.start) else 1.0
    return np.array([upper.get(step, untried) < 0 for step in table["step"]])


def _gain(run: Run) -> float:
    """The optimizer's step per unit of constant gradient, eta F(1) / P, read off the steepest direction."""
    table = signals.curvature(run)
    top, progress = signals.tops(table), signals.array(table, "progress")
    gain = signals.median(progress[top > 0] / top[top > 0])
    return gain if np.isfinite(gain) else optimizer.last_rate(run)


def explains(finding: Finding, other: Finding) -> bool:
    if LEADS_TO in other.evidence:
        return False
    flat = {"lr-too-small", "local-minimum", "ravine"}
    return other.kind in flat or (other.kind == "plateau" and other.cause in (None, HARDLY_LEARNED))
