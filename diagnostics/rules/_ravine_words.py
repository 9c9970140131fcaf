"""What is said of a ravine once it is found: its sentence, evidence, formula and remedies.

Source: lecture, "Ill-conditioned curvature".
"""

import pandas as pd

from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._below_linear import at_linear, rival
from diagnostics.rules._charts import INPUTS, LOG_LOSS
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._mean_mode import MeanMode
from diagnostics.rules._weight_scales import ADAM
from diagnostics.rules._words import number, tex
from diagnostics.run import Run

KIND = "ravine"
PINNED = 0.3  # stability ratio: three times the rate would be unstable


def along_the_floor(
    run: Run, history: signals.Loss, late: pd.DataFrame, cause: str, first: int, condition: float
) -> Finding:
    rate, ratio = optimizer.rate_at(run, late["step"].to_numpy()), signals.median(signals.array(late, "stability"))
    slow = limits.steps_along(late, condition)
    pinned = f"stability pins the learning rate at {number(rate)} (s = {number(ratio)}), and"
    if ratio < PINNED:
        pinned = f"past {number(rate / ratio)} the learning rate would be unstable, and at {number(rate)}"
    return Finding(
        kind=KIND,
        cause=cause,
        severity="warning",
        first_step=first,
        last_step=None,
        layers=(),
        summary=f"The loss curves {number(condition)} times more steeply across the valley than along it, "
        f"where the weights move: {pinned} a tenfold shrink along the floor takes {number(slow)} updates in a run of "
        f"{history.count}.",
        evidence={
            "condition number": condition,
            "stability ratio": ratio,
            "share of gradient along flat directions": signals.median(signals.array(late, "flat_gradient_share")),
            "updates for a tenfold shrink": slow,
            "largest eigenvalue": signals.median(signals.tops(late)),
        },
        remedies=_remedies(run, cause, condition),
        charts=_charts(cause),
        formula=(
            rf"\kappa = \frac{{\lambda_{{\max}}\,\|u\|^2}}{{u^\top \mathbf{{H}} u}} = {tex(condition)}, "
            rf"\qquad \alpha\lambda_{{\text{{along}}}} < \frac{{2}}{{\kappa}} = {tex(2 / condition)}"
        ),
    )


def of_the_inputs(run: Run, history: signals.Loss, late: pd.DataFrame, spread: conditioning.Spread) -> Finding:
    rate, ratio = optimizer.rate_at(run, late["step"].to_numpy()), signals.median(signals.array(late, "stability"))
    slow, condition = limits.steps_along(late, spread.condition), spread.condition
    moments = r"\mathbf{E}[\mathbf{x}\mathbf{x}^\top] = \boldsymbol{\Sigma} + \boldsymbol{\mu}\boldsymbol{\mu}^\top"
    variation = "their variation around it"
    if condition > spread.largest:
        variation = "the one in which weights and bias move against each other"
        moments = r"\mathbf{E}[\tilde{\mathbf{x}}\tilde{\mathbf{x}}^\top], \quad \tilde{\mathbf{x}} = (\mathbf{x}, 1)"
    steep, flat = {
        "feature-scale": ("The largest input feature", "the smallest"),
        "uncentered-inputs": ("The mean of the inputs", variation),
    }[spread.cause]
    linear = run.meta["linear_model"]
    where = "the loss of this linear model" if linear else "the loss, in the first layer's weights,"
    return Finding(
        kind=KIND,
        cause=spread.cause,
        severity="warning",
        first_step=history.first_step,
        last_step=None,
        layers=(),
        summary=f"{steep} makes {where} {number(condition)} times steeper in one direction than along {flat}: at a "
        f"learning rate of {number(rate)} (s = {number(ratio)}) a tenfold shrink along the latter takes {number(slow)} "
        f"updates in a run of {history.count}, and the loss has come from {number(history.start)} to "
        f"{number(history.end)}.{at_linear(rival(run, history.middle_step))}",
        evidence={
            "condition number of the inputs": condition,
            "stability ratio": ratio,
            "updates for a tenfold shrink": slow,
            "largest eigenvalue": signals.median(signals.tops(late)),
        },
        remedies=_remedies(run, spread.cause, condition),
        charts=_charts(spread.cause),
        formula=rf"\mathbf{{H}} \propto {moments}, \qquad \kappa \approx {tex(condition)}",
    )


def below_the_mean_mode(run: Run, history: signals.Loss, mode: MeanMode, first: int) -> Finding:
    return Finding(
        kind=KIND,
        cause="uncentered-activations",
        severity="warning",
        first_step=first,
        last_step=None,
        layers=(mode.layer,),
        summary=f"The logistic units of {mode.layer} are far from centred, and one direction is {number(mode.gap)} "
        f"times steeper than the next: it alone pins the learning rate at {number(mode.rate)} (s = "
        f"{number(mode.ratio)}), and the fall from {number(history.start)} to {number(history.end)} took "
        f"{mode.updates} of {history.count} updates.",
        evidence={
            "largest eigenvalue over the next": mode.gap,
            "condition number": mode.condition,
            "stability ratio": mode.ratio,
            "squared means over variances": mode.offset - 1,
            "updates for nine tenths of the fall": float(mode.updates),
        },
        remedies=_remedies(run, "uncentered-activations", mode.condition),
        charts=_charts("uncentered-activations"),
        formula=(
            rf"\mathbf{{E}}[\mathbf{{h}}\mathbf{{h}}^\top] = \mathbf{{V}} + \mathbf{{m}}\mathbf{{m}}^\top, \qquad "
            rf"\frac{{\lambda_1}}{{\lambda_2}} = {tex(mode.gap)} \le 1 + \mathbf{{m}}^\top\mathbf{{V}}^{{-1}}"
            rf"\mathbf{{m}} = {tex(mode.offset)}"
        ),
    )


def _remedies(run: Run, cause: str, condition: float) -> tuple[str, ...]:
    standardize = conditioning.standardize(run)
    rescaled = optimizer.adaptive(run)  # and averaged: what is left is not mended by either
    momentum = () if rescaled else (limits.momentum_remedy(condition),)
    if cause in {"feature-scale", "uncentered-inputs"}:
        # Adam rescales single coordinates, and a mean is no matter of those.
        return (standardize, *momentum, *((ADAM,) if cause == "feature-scale" and not rescaled else ()))
    if cause == "correlated-inputs":
        return (
            (
                "whiten the inputs: project them on the eigenvectors of their covariance and divide by the "
                "deviations (sklearn.decomposition.PCA(whiten=True)); standardizing alone leaves the correlation"
            ),
            *momentum,
        )
    if cause == "uncentered-activations":
        return (
            "replace nn.Sigmoid by nn.Tanh, whose outputs are centred",
            "put nn.BatchNorm1d before the activation",
            *momentum,
        )
    norms = "put normalization layers between the layers"
    if rescaled:
        return (norms,)
    return (ADAM.removeprefix("or "), norms) if optimizer.momentum(run) > 0 else (*momentum, ADAM)


def _charts(cause: str) -> tuple[Chart, ...]:
    charts = (
        Chart("spectrum", "curvature", ("eigenvalues", "smallest"), "Largest and smallest eigenvalues", log=True),
        LOG_LOSS,
    )
    if cause in {"feature-scale", "uncentered-inputs", "correlated-inputs"}:
        return (INPUTS, *charts)
    return charts
