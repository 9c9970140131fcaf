"""How curved the loss is, and how the step sits against what this optimizer can follow."""

from functools import partial
from typing import Any

import numpy as np
import streamlit as st

from diagnostics import charts
from diagnostics.charts import own, slices, spectrum
from diagnostics.charts.parts import Frame
from diagnostics.rules import Chart, Finding
from diagnostics.run import Run
from diagnostics.views import verdict
from diagnostics.views.common import View, downloads, figure, follow, picture, run_page, worst_alarm
from diagnostics.views.estimates import grows, latest_whole
from diagnostics.views.text import number

STABILITY = Chart("stability", "curvature", ("stability",), "Stability ratio s against this optimizer's limits")
EIGENVALUES = Chart("spectrum", "curvature", ("eigenvalues",), "Largest and smallest eigenvalues of the Hessian")
ALIGNMENT = Chart("line", "curvature", ("gradient_alignment",), "Share of the squared gradient in the top directions")
QUICK_ALONE = (
    "the estimates were quick ones, of the stability ratio alone, as a whole one was not affordable. A longer run, a "
    "larger `watch(budget=...)` or `watch(curvature_every=...)` measures it."
)


def page() -> None:
    run_page(body)


def body(view: View) -> None:
    table: Frame = view.run.table("curvature")
    if table.empty:
        not_measured(view)
        return
    verdict.compact(view)
    standing(view, table)
    alarm = worst_alarm(view)
    words = "Stability ratio over updates against its limits"
    picture(view, charts.draw, STABILITY, alarm, key="stability", alt_text=words)
    st.caption(
        "s is the largest curvature, rescaled by learning rate, momentum and preconditioner, so that 1 is the limit of "
        "this optimizer. For gradient descent s = αλ/2: below ½ the steepest direction decays, up to 1 it oscillates, "
        "beyond 1 it diverges - the lecture's three cases." + with_momentum(view.run)
    )
    if quick_alone(table):
        st.info(f"The spectrum was not measured: {QUICK_ALONE}")
    else:
        spectra(view, table, alarm)
    downloads(
        {name: partial(view.run.table, name) for name in ("curvature", "batches", "slices")},
        "curvature",
    )


def spectra(view: View, table: Frame, alarm: Finding | None) -> None:
    words = "Eigenvalues over updates with error bars"
    picture(view, charts.draw, EIGENVALUES, alarm, key="eigenvalues", alt_text=words)
    st.caption(
        "Bars: the residual of each eigenvalue. The axis is linear up to their typical size and logarithmic beyond."
    )
    at_step(view, table)
    words = "Share of the gradient in the top eigenvectors"
    picture(view, charts.draw, ALIGNMENT, alarm, key="alignment", alt_text=words)
    st.caption("Near 1, the gradient points across the ravine: the steps bounce instead of following its floor.")


def quick_alone(table: Frame) -> bool:
    return len(table) > 0 and not table["eigenvalues"].map(len).any()


def not_measured(view: View) -> None:
    if quick_alone(view.run.table("curvature", ["step", "eigenvalues"])):
        st.info(f"The Hessian's own curvature was not measured in this run: {QUICK_ALONE}")
        return
    if view.run.meta["closure"]:
        st.info(f"Curvature was not measured in this run: {given_in_vain(view)}")
        return
    if view.run.meta["closure"] is False:
        reason = "`monitor.step` was called without a closure"
    elif view.live:
        reason = "the first estimate has not been made yet"
    else:
        reason = "no estimate was made"
    st.info(
        f"Curvature was not measured in this run: {reason}. Give the loss of the current batch as a function: "
        "`monitor.step(loss, closure=lambda: criterion(model(x), y))`."
    )


def given_in_vain(view: View) -> str:
    """Why there is no curvature though the loss was given as a function."""
    if view.run.meta["curvature_every"] == 0:
        return "`curvature_every=0` switches it off."
    if view.live:
        return "the first estimate has not been made yet."
    return "no estimate succeeded. See Events on the Training page."


def with_momentum(run: Run) -> str:
    """Where oscillation starts for the run's own optimizer, if it is not gradient descent's half."""
    border = own.swings_above(run, float(run.table("curvature", ["oscillation_limit"]).iloc[-1, 0]))
    known = np.isfinite(border) and not np.isclose(border, 0.5)
    return f" Momentum makes this run's optimizer oscillate from s = {number(border)} on." if known else ""


def standing(view: View, table: Frame) -> None:
    """What the latest estimate says, in sentences and four numbers."""
    last, whole = table.iloc[-1], latest_whole(table)
    ratio, border = float(last["stability"]), own.swings_above(view.run, float(last["oscillation_limit"]))
    st.title(sentence(ratio, border, int(last["step"])), anchor=False)
    remarks(view, table, whole)
    steepest = last if len(last["eigenvalues"]) else whole
    top, error = (each[0] if len(each) else np.nan for each in (steepest["eigenvalues"], steepest["residuals"]))
    then = "" if whole["step"] == last["step"] else f", step {whole['step']:,}"
    of_top = then if steepest is whole else ""
    cards = (
        ("Stability ratio s", ratio, "above 1: unstable"),
        ("Largest eigenvalue", top, f"± {number(error, 2)}{of_top}" if np.isfinite(error) else ""),
        ("Smallest eigenvalue", whole["smallest"], f"± {number(whole['smallest_residual'], 2)}{then}"),
        ("Gradient in the top directions", whole["gradient_alignment"], f"share of its square{then}"),
    )
    known = [each for at, each in enumerate(cards) if at == 0 or np.isfinite(float(each[1]))]
    for column, (label, value, note) in zip(st.columns(len(cards)), known, strict=False):
        column.metric(
            label, number(float(value)), border=True, height="stretch", delta=note, delta_color="off", delta_arrow="off"
        )


def sentence(ratio: float, border: float, step: int) -> str:
    """Without a sign: one estimate is no verdict on the run."""
    if not np.isfinite(ratio):
        return "The stability ratio could not be computed for this optimizer"
    says = f"The latest estimate, at step {step:,}, says: "
    if ratio <= 0:
        return f"{says}no measured direction curves upwards"
    if ratio > 1:
        return f"{says}the step was {number(ratio)} times the largest stable one"
    band = "oscillates" if ratio > border else "decays without swinging"
    known = f", and the steepest direction {band}" if np.isfinite(border) else ""
    return f"{says}the step was {number(ratio)} of the largest stable one{known}"


def remarks(view: View, table: Frame, whole: Frame) -> None:
    """What the sentence about the latest ratio leaves out: directions that grow, and earlier estimates."""
    if grows(whole):
        lowest = number(whole["smallest"])
        words = f"a direction of curvature {lowest} grows: it is left, not approached, at any learning rate"
        verdict.growth(view, int(whole["step"]), words)
    ratios = table["stability"].to_numpy(float)
    if not (ratios > 1).any():
        return
    peak = int(np.nanargmax(ratios))
    if number(ratios[peak]) != number(ratios[-1]):
        st.markdown(
            f"Over the run s was largest at step {table['step'].iloc[peak]:,}: the step was {number(ratios[peak])} "
            "times the largest stable one."
        )
    verdict.excuse(view, int(table["step"].iloc[-1 if ratios[-1] > 1 else peak]))


def at_step(view: View, table: Frame) -> None:
    steps = [int(step) for step in table["step"]]
    latest = int(latest_whole(table)["step"])
    follow(view, "spectrum", latest)
    chosen = st.select_slider(
        "Spectrum and loss after step",
        steps,
        value=latest,
        key="spectrum",
        bind="query-params",
    )
    chosen = chosen if chosen in steps else steps[-1]
    words = f"Eigenvalues after step {chosen}"
    picture(view, spectrum.at_step, chosen, key="spectrum-at", alt_text=words)
    sliced(view, chosen)


def sliced(view: View, step: int) -> None:
    """The loss along two lines: what the step did, and how far the quadratic picture holds."""
    rows = view.run.table("slices", first=step, last=step).to_dict("records")
    if not rows:
        st.caption(
            "No slice of the loss was recorded at this step: it takes a full estimate, one process, a closure that "
            "gives the same loss twice, and a version of diagnostics that records them."
        )
        return
    for column, row in zip(st.columns(2, gap="large"), rows, strict=False):
        with column:
            name = row["direction"]
            figure(
                slices.along(row, f"Loss along the {name} after step {step:,}"),
                f"slice-{name[:3]}",
                f"Loss along the {name}",
            )
            st.caption(what_the_step_did(row))
    st.caption(
        r"Dashed: the second-order Taylor approximation $\mathcal J(0) + \mathbf g^\top \mathbf v\,t + "
        r"\frac{\lambda}{2} t^2$ along the unit vector $\mathbf v$, "
        r"with $\lambda = \mathbf v^\top \mathbf H \mathbf v$. "
        r"A gradient step with $\alpha = 1/\lambda$ lands on its floor; with $\alpha > 2/\lambda$ on the other side, "
        r"higher than it began. Where the measured loss leaves the dashes it is no quadratic any more, and limits such "
        r"as $2/\lambda$ hold for shorter steps only."
    )


def what_the_step_did(row: dict[str, Any]) -> str:
    """One sentence: along this line, which way did the last update go, and did it pass the floor?"""
    start, end = slices.began(row), slices.here(row)
    if start is None or not np.isfinite(start):
        return f"Curvature {number(row['curvature'])} along it; where the last update began was not kept."
    if number(start, 4) == number(end, 4):
        return f"The last update left the loss on this line as it was, to four digits: {number(end, 4)}."
    losses = f"the loss on this line from {number(start, 4)} to {number(end, 4)}"
    floor = -row["slope"] / row["curvature"] if row["curvature"] > 0 else np.inf
    if min(-row["moved"], 0) < floor < max(-row["moved"], 0):
        side = "**higher** on the other side: too long a step" if end > start else "lower on the other side"
        return f"The last update stepped over the valley's floor and landed {side}; it took {losses}."
    if end > start:
        return f"The last update went uphill along this line; it took {losses}."
    if not np.isfinite(floor):
        return f"The loss bends down along this line, there is no floor; the last update took {losses}."
    way = abs(row["moved"]) / (abs(row["moved"]) + abs(floor) or 1.0)
    return f"The last update went {number(100 * way, 2)} % of the way down to the valley's floor; it took {losses}."
