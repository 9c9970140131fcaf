"""What another learning rate, momentum or optimizer would do on the curvature this run has."""

from typing import cast

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from diagnostics.charts import dynamics, factors, landscape, lines
from diagnostics.charts.dynamics import Optimizer
from diagnostics.charts.own import RESCALED, momentum, own_name
from diagnostics.charts.parts import Frame
from diagnostics.run import Run
from diagnostics.views import verdict
from diagnostics.views.common import View, figure, follow, run_page
from diagnostics.views.curvature import not_measured
from diagnostics.views.estimates import latest_whole, limits, measured, own_coordinates
from diagnostics.views.judgement import Judgement, rounded
from diagnostics.views.text import md, number, tex

NAMES: tuple[dynamics.Name, ...] = ("gradient descent", "momentum", "Nesterov", "RMSprop", "Adam")
MOMENTA = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
PATH_STEPS = (10, 30, 60, 120, 300, 1000)
FATES = {"decays": "● decays", "oscillates": "■ oscillates", "diverges": "▲ diverges", "escapes": "◆ escapes"}


def page() -> None:
    run_page(body)


def body(view: View) -> None:
    table: Frame = view.run.table("curvature")
    known = table[table["eigenvalues"].map(lambda values: len(values) > 0 and np.isfinite(values[0]))]
    if known.empty:
        not_measured(view)
        return
    verdict.compact(view)
    row, optimizer, steps = settings(view, known)
    directions = measured(row, optimizer)
    if directions.empty:
        st.info(f"The curvature that {optimizer.name} sees was not measured in this run. Choose another optimizer.")
        return
    certain = directions[directions["certain"]]["curvature"].to_numpy()
    over = limits(table, optimizer)
    headline(view, Judgement(optimizer, factors.fates(optimizer, certain), int(row["step"]), *over))
    about(optimizer, view.run.meta["optimizer"], row)
    left, right = st.columns(2, gap="large")
    with left:
        title = f"Factor per step of each direction, after update {int(row['step']):,}"
        if len(certain):
            figure(factors.factors(optimizer, certain, title), "factors", title)
        else:
            st.info("No curvature was measured beyond its own error: every factor per step is 1 within it.")
    with right:
        ravine(optimizer, steps, measured(row, Optimizer("gradient descent", optimizer.lr)))
    limit_over_run(view, optimizer, *over)
    best(table, row)
    table_of_directions(optimizer, directions)


def settings(view: View, known: Frame) -> tuple[Frame, Optimizer, int]:
    """The sliders, which start where the run stood -> the estimate, the optimizer, for how many steps to draw it."""
    group = (view.run.meta["hyperparameters"] or [{}])[0]
    own = own_name(view.run.meta["optimizer"], group)
    latest = int(latest_whole(known)["step"])
    rate = rate_at(view.run, latest)
    rates = offered_rates(rate, max(values[0] for values in known["eigenvalues"]))
    follow(view, "estimate", latest, optimizer=own, eta=closest(rates, rate), mu=nearest_momentum(group))
    chosen = st.segmented_control("Optimizer", NAMES, key="optimizer", default=own, required=True, bind="query-params")
    name = cast(dynamics.Name, chosen) if chosen in NAMES else own
    columns = st.columns([3, 2, 2, 2], gap="large")
    lr = columns[0].select_slider("Learning rate α", rates, closest(rates, rate), key="eta", bind="query-params")
    mu = 0.0
    if name not in ("gradient descent", "RMSprop"):
        label = "β₁, Adam's momentum" if name == "Adam" else "Momentum μ"
        mu = columns[1].select_slider(label, MOMENTA, nearest_momentum(group), key="mu", bind="query-params")
    offered = [int(step) for step in known["step"]]
    step = columns[2].select_slider("Curvature after step", offered, latest, key="estimate", bind="query-params")
    steps = columns[3].select_slider("Steps drawn", PATH_STEPS, 60, key="steps", bind="query-params")
    row = known[known["step"] == (step if step in offered else latest)].iloc[-1]
    return row, Optimizer(name, float(lr), float(mu)), int(steps)


def rate_at(run: Run, step: int) -> float:
    """The learning rate of the update after which the curvature was measured; 0 where it was not told."""
    rates = run.table("scalars", ["lr"], last=step)["lr"].to_numpy(float)[-1:]
    return float(rates[0]) if len(rates) and np.isfinite(rates[0]) and rates[0] > 0 else 0.0


def nearest_momentum(group: dict) -> float:
    own = momentum(group) or 0.9
    return min(MOMENTA, key=lambda mu: abs(mu - own))


def offered_rates(rate: float, top: float) -> list[str]:
    """The run's own rate on a ladder from far below to far above gradient descent's limit for the curvature `top`."""
    limit = 2 / top if top > 0 else 1.0
    known = [rate] if rate > 0 else []
    low, high = min([limit / 1000, *(r / 30 for r in known)]), max([limit * 40, *(r * 30 for r in known)])
    return list(dict.fromkeys(f"{value:.3g}" for value in sorted([*np.geomspace(low, high, 120), *known])))


def closest(rates: list[str], rate: float) -> str:
    return min(rates, key=lambda text: abs(float(text) - rate))


def certainly_positive(directions: Frame) -> Frame:
    """Curvatures above their own error, ascending: below it they could as well be zero."""
    return directions[directions["certain"] & (directions["curvature"] > 0)]["curvature"].sort_values()


def headline(view: View, judgement: Judgement) -> None:
    """What becomes of the directions whose curvature is known, by the chosen estimate and by all of them."""
    st.title(judgement.headline, anchor=False)
    if judgement.growth:
        verdict.growth(view, judgement.step, judgement.growth)
    if judgement.past:
        beside_own(view, judgement.optimizer, judgement.past[0])
    if not np.isfinite(judgement.limit):
        return
    worst = judgement.found.loc[judgement.found["curvature"].idxmax()]
    values = {
        "α · λ of the steepest direction": number(float(worst["product"])),
        "Its factor per step": number(float(worst["factor"]), 4),
        "Steps to shrink it tenfold": rounded(float(worst["steps"])) if worst["factor"] < 1 else "never",
        f"Largest stable rate at step {judgement.step:,}": number(judgement.limit),
    }
    for column, (label, value) in zip(st.columns(4), values.items(), strict=True):
        column.metric(label, value, border=True, height="stretch")


def beside_own(view: View, optimizer: Optimizer, step: int) -> None:
    """Why the run itself did not fail past this limit: it took another rate then, or its diagnosis knows better."""
    group = (view.run.meta["hyperparameters"] or [{}])[0]
    momenta = nearest_momentum(group), 0.0
    if optimizer.name != own_name(view.run.meta["optimizer"], group) or optimizer.momentum not in momenta:
        return
    rate = rate_at(view.run, step)
    if f"{rate:.3g}" == f"{optimizer.lr:.3g}":
        verdict.excuse(view, step)
    elif 0 < rate < optimizer.lr:
        st.markdown(f"The run itself took a rate of {number(rate)} at step {step:,}.")


def limit_over_run(view: View, optimizer: Optimizer, steps: NDArray, rates: NDArray) -> None:
    """The largest stable rate at each estimate, beside the chosen one."""
    if len(steps) < 2:
        return
    series = {"largest stable rate": (steps, rates), "the chosen rate": (steps, np.full(len(steps), optimizer.lr))}
    title = f"Largest stable rate at each estimate: {optimizer.name}"
    drawn = lines.draw_lines(series, title, log=True, limits=lines.whole(view.run))
    figure(drawn, "limit", title)


def about(optimizer: Optimizer, own: str, row: Frame) -> None:
    """What the numbers leave out."""
    name = optimizer.name
    if name not in RESCALED:
        if own and not any(known in own.lower() for known in ("sgd", "rmsprop", "adam")):
            st.caption(f"{md(own)} is not among these; shown is {name} on the Hessian itself.")
        if len(row["eigenvalues"]) < row["dimension"] and not row["smallest"] > 0:
            st.caption("Not every direction is measured: flatter ones take longer.")
    elif own_coordinates(row):
        st.caption(
            f"{name} rescales every weight by the size of its gradient, which this run did not record: the numbers "
            f"take a scale of 1. The path in the picture is {name} itself."
        )
    else:
        st.caption(
            f"{name} rescales every weight by the size of its gradient. Only the steepest direction was measured in "
            "those coordinates, and the numbers freeze the scale as it was then."
        )


def ravine(optimizer: Optimizer, steps: int, directions: Frame) -> None:
    """The steepest and the flattest measured positive direction, and three ways down."""
    positive = certainly_positive(directions)
    if positive.empty:
        st.info("No direction of positive curvature was measured: there is no ravine to draw.")
        return
    flat, steep = float(positive.iloc[0]), float(positive.iloc[-1])
    hessian = np.diag([flat, steep])
    mu = optimizer.momentum or 0.9
    scaling = Optimizer("Adam", optimizer.lr, mu)
    if optimizer.name == "RMSprop":
        scaling = Optimizer("RMSprop", optimizer.lr, smoothing=0.99)
    ways = {
        "gradient descent": Optimizer("gradient descent", optimizer.lr),
        f"momentum {mu:g}": Optimizer("momentum", optimizer.lr, mu),
        scaling.name: scaling,
    }
    paths = {name: dynamics.path(way, hessian, np.array([-1.0, 0.8]), steps) for name, way in ways.items()}
    title = f"Down this run's ravine: curvature {number(steep)} across, {number(flat)} along"
    axes = (f"along the flattest measured direction, λ = {number(flat)}", f"steepest, λ = {number(steep)}")
    drawn = landscape.landscape(
        landscape.quadratic(hessian), (-1.3, 1.3, -1.3, 1.3), paths, title, axes=axes, height=300
    )
    figure(drawn, "ravine", f"{title}: paths of gradient descent, momentum and {scaling.name}")


def best(table: Frame, row: Frame) -> None:
    """The textbook optimum for the measured range of curvatures, and whether it was one all the way."""
    positive = certainly_positive(measured(row, Optimizer("gradient descent", 1.0)))
    if positive.empty:
        return
    largest, smallest = float(positive.max()), float(positive.min())
    plain, heavy = dynamics.best_gradient_descent(largest, smallest), dynamics.best_heavy_ball(largest, smallest)
    st.header("The best settings for this spectrum", divider="gray")
    left, right = st.columns(2, gap="large")
    left.markdown(f"**Gradient descent**, factor {number(plain.factor, 4)} per step")
    left.latex(rf"\alpha = \frac{{2}}{{L+m}} = {tex(plain.lr)}")
    right.markdown(f"**Heavy ball**, factor {number(heavy.factor, 4)} per step")
    right.latex(rf"\alpha = \frac{{4}}{{(\sqrt L+\sqrt m)^2}} = {tex(heavy.lr)}")
    right.latex(  # a line of its own: beside the rate it would not fit on a phone
        rf"\mu = \left(\frac{{\sqrt\kappa-1}}{{\sqrt\kappa+1}}\right)^2 = {tex(heavy.momentum)}"
    )
    whole = len(row["eigenvalues"]) >= row["dimension"]
    bound = "" if whole else " Not every direction is measured, so the true m may be smaller: the factors are a bound."
    st.caption(
        f"L = {number(largest)} and m = {number(smallest)}: the largest and the smallest positive measured curvature, "
        f"κ = L/m = {number(largest / smallest)}.{bound}"
    )
    only_here(table, Optimizer("gradient descent", plain.lr), int(row["step"]))
    only_here(table, Optimizer("momentum", heavy.lr, heavy.momentum), int(row["step"]))


def only_here(table: Frame, best: Optimizer, step: int) -> None:
    """The curvature changes: what is best for one estimate may have been unstable at another."""
    steps, rates = limits(table, best)
    if len(rates) and best.lr > rates.min():
        times, where = number(best.lr / rates.min()), int(steps[rates.argmin()])
        st.markdown(
            f"Best for step {step:,} alone: with {best.name}, a rate of {number(best.lr)} is {times} times the largest "
            f"stable one at step {where:,}."
        )


def table_of_directions(optimizer: Optimizer, directions: Frame) -> None:
    found = factors.fates(optimizer, directions["curvature"].to_numpy())
    found.insert(0, "direction", directions["direction"])
    found.insert(2, "± residual", directions["residual"])
    found["steps"] = [
        "never" if np.isinf(steps) else f"{rounded(steps)} to {'grow' if factor >= 1 else 'shrink'} tenfold"
        for steps, factor in zip(found["steps"], found["factor"], strict=True)
    ]
    found["fate"] = found["fate"].map(FATES)
    found.loc[~directions["certain"], ["steps", "fate"]] = ["", "○ flat within the error"]
    names = {"curvature": "curvature λ", "product": "α·λ", "factor": "factor per step"}
    st.header("Each measured direction", divider="gray")
    st.dataframe(
        found.rename(columns=names),
        hide_index=True,
        key="directions",
        alt="Factor per step and steps of each direction",
    )
    st.caption("A direction of negative curvature is not approached but left: its steps are the escape time.")
