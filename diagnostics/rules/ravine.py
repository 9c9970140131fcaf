r"""A ravine: ill-conditioned curvature.

## What it is
A long, narrow valley. Across it the loss curves steeply, along it hardly at all. The steep walls dictate a small
step, and with that step progress along the floor is slow.

## What we look at
Whether the learning rate is pinned by the steepest direction ($s$ not small), how much flatter the direction is
in which the weights really move, $\kappa = \lambda_{\max}\,\|u\|^2/(u^\top\mathbf H u)$ for the recent
displacement $u$, how much of the gradient lies along curvature below $\lambda_{\max}/100$, and whether at this
rate a tenfold shrink along the floor takes longer than the run. For Adam and RMSprop all of it is measured on the
Hessian they see. The cause comes from the inputs and activations.

## Why it happens
In the eigenbasis each coordinate is multiplied by $(1 - \alpha\lambda_i)^k$. Stability needs $\alpha <
2/\lambda_{\max}$, so $\alpha\lambda_i < 2\lambda_i/\lambda_{\max}$: the condition number $\kappa =
\lambda_{\max}/\lambda_{\min}$ sets the speed. For a linear layer $\bar w_j = \bar y\,x_j$, so features of unequal
size, or far from zero mean, make the Hessian ill-conditioned: its eigenvalues are those of the inputs' second
moments.

## What to try
Centre and scale the inputs, $\tilde x_j = (x_j - \mu_j)/\sigma_j$; batch normalization or tanh instead of
logistic units inside the net; momentum, which needs about $\sqrt\kappa$ steps where gradient descent needs
$\kappa$; Adam.

## When this is wrong
Networks have many near-zero eigenvalues that do not matter; they are silent unless the gradient lies there and
the rate is pinned. Momentum or Adam may cross a ravine well: silent too. The displacement shows the direction
being moved in, not the flattest one, so $\kappa$ is a lower bound.

## In the lecture
*Ill-conditioned curvature* (all four parts), *Momentum*, *Ravines*, *RMSprop and Adam*.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _limits as limits
from diagnostics.rules import _signals as signals
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

KIND = "ravine"
RANK = 11
LITTLE = 0.01  # of the loss: less is not worth another optimizer


def check(
    run: Run,
    *,
    pinned: float = 0.3,  # stability ratio: three times the rate would be unstable
    narrow: float = 100.0,  # condition number: one percent of the steepest direction's speed
    floor: float = 0.5,  # share of the squared gradient along curvature below a hundredth of the largest
    gained: float = 0.5,  # of the loss since the steepest direction had settled: a run this far along is not held up
    left: float = 0.3,  # of that gain (of the loss, for a linear model), still to be had along the floor
    wide: float = 10.0,  # condition number of the inputs that counts as a cause
) -> Iterator[Finding]:
    table = signals.curvature(run)
    history = signals.loss(run)
    signals.stability(run)
    if history.count < 20:
        return
    late = table.loc[table["step"] >= history.steps[0] + history.count // 3]
    late = late if len(late) else table.tail(1)
    ratio = signals.median(signals.array(late, "stability"))
    condition = _condition(run, late)
    share = signals.median(signals.array(late, "flat_gradient_share"))
    if not np.isfinite(condition) and not np.isfinite(share):
        raise signals.Missing("curvature.condition: no displacement was measured between estimates")
    slow = _slow_steps(late, condition)
    steep = ratio >= pinned and (condition > narrow or share > floor)
    if not steep or slow < history.count or not _held_up(run, history, late, condition, left, gained):
        return
    cause = _cause(run, wide)
    condition = condition if np.isfinite(condition) else narrow
    first = int(table["step"].to_numpy()[signals.array(table, "stability") >= pinned].min())
    rate = signals.last_rate(run)
    top = signals.median(signals.tops(late))
    yield Finding(
        kind=KIND,
        cause=cause,
        severity="warning",
        first_step=first,
        last_step=None,
        layers=(),
        summary=f"The loss curves {number(condition)} times more steeply across the valley than along it, "
        f"where the weights move: stability pins the learning rate at {number(rate)} (s = "
        f"{number(ratio)}), "
        f"and a tenfold shrink along the floor takes {number(slow)} updates in a run of {history.count}.",
        evidence={
            "condition number": condition,
            "stability ratio": ratio,
            "share of gradient along flat directions": share,
            "updates for a tenfold shrink": slow,
            "largest eigenvalue": top,
        },
        remedies=_remedies(run, cause, condition),
        charts=_charts(cause),
        formula=(
            rf"\kappa = \frac{{\lambda_{{\max}}\,\|u\|^2}}{{u^\top \mathbf{{H}} u}} = {tex(condition)}, "
            rf"\qquad \alpha\lambda_{{\text{{along}}}} < \frac{{2}}{{\kappa}} = {tex(2 / condition)}"
        ),
    )


def _condition(run: Run, table: pd.DataFrame) -> float:
    """Median over the estimates. In a linear model curvature along the updates that seems to be zero or negative is
    positive but lost in float32's rounding: the condition number is then at least one over its precision."""
    values = signals.array(table, "condition")
    if run.meta.get("linear_model"):
        values = np.minimum(values, 1 / np.finfo(np.float32).eps)
    return signals.median(values[np.isfinite(values) & (values > 0)])


def _slow_steps(table: pd.DataFrame, condition: float) -> float:
    """Updates for a tenfold shrink along the displacement: contraction of the steepest direction over the
    condition number."""
    progress = signals.median(signals.array(table, "progress"))
    if not np.isfinite(progress) or not np.isfinite(condition):
        return np.inf
    return limits.steps_for_tenfold(1 - min(1.0, progress / condition))


def _held_up(
    run: Run, history: signals.Loss, table: pd.DataFrame, condition: float, left: float, gained: float
) -> bool:
    """Most of the loss that stood when the steepest direction had settled is still there, and can still be gained.

    What is left along the floor is |g|^2 kappa / (2 lambda_max) in the quadratic picture. That picture is exact for a
    linear model under its own gradient: there the share of the loss that is left decides by itself.
    """
    settled = float(history.values[history.count // 20])
    gain = _gradient_square(run, history) * condition / (2 * signals.median(signals.tops(table)))
    if not signals.trend(history.values[history.count // 2 :]).z > 3 or gain < LITTLE * abs(history.end):
        return False
    if run.meta.get("linear_model") and not signals.adaptive(run) and gain >= left * abs(history.end):
        return True
    return history.end > (1 - gained) * settled and not gain < left * (settled - history.end)


def _gradient_square(run: Run, history: signals.Loss) -> float:
    """Without the batches' noise where it was measured."""
    square = signals.latest(run, "batches", "gradient_square")
    _, norms = signals.column(run, "grad_norm")
    return square if np.isfinite(square) else signals.median(norms[-history.window :] ** 2)


def _cause(run: Run, wide: float) -> str:
    """The largest of the condition numbers that inputs and activations make by themselves."""
    spread = conditioning.spread(run)
    inputs = spread.largest if spread is not None else 1.0
    activations = conditioning.activation_offset(run)
    if max(inputs, activations) < wide:
        return "intrinsic"
    return spread.cause if spread is not None and inputs >= activations else "uncentered-activations"


def _remedies(run: Run, cause: str, condition: float) -> tuple[str, ...]:
    standardize = _standardize(run)
    momentum = limits.momentum_remedy(condition)
    adam = "or use torch.optim.Adam, which rescales each coordinate by its own gradients"
    if cause in {"feature-scale", "uncentered-inputs"}:
        return (standardize, momentum, adam)
    if cause == "correlated-inputs":
        return (
            (
                "whiten the inputs: project them on the eigenvectors of their covariance and divide by the "
                "deviations (sklearn.decomposition.PCA(whiten=True)); standardizing alone leaves the correlation"
            ),
            momentum,
        )
    if cause == "uncentered-activations":
        return (
            "replace nn.Sigmoid by nn.Tanh, whose outputs are centred",
            "put nn.BatchNorm1d before the activation",
            momentum,
        )
    already = signals.momentum(run) > 0
    return (adam, "put normalization layers between the layers") if already else (momentum, adam)


def _standardize(run: Run) -> str:
    table = conditioning.inputs(run).head(3)
    shown = "; ".join(
        f"x[{feature}]: mean {number(mean)}, deviation {number(std)}"
        for feature, mean, std in zip(table["feature"], table["mean"], table["std"], strict=True)
    )
    return f"centre and scale each input feature, x = (x - mean) / std ({shown})"


def _charts(cause: str) -> tuple[Chart, ...]:
    charts = (
        Chart("spectrum", "curvature", ("eigenvalues", "smallest"), "Largest and smallest eigenvalues", log=True),
        Chart("line", "scalars", ("loss",), "Loss", log=True),
    )
    if cause in {"feature-scale", "uncentered-inputs", "correlated-inputs"}:
        return (Chart("inputs", "inputs", ("mean", "std"), "Mean and deviation of each input feature"), *charts)
    return charts


def explains(finding: Finding, other: Finding) -> bool:
    return other.kind in {"lr-too-small", "lr-oscillation", "local-minimum", "plateau"} and other.cause not in {
        "double-softmax",
        "momentum",
    }
