"""What another learning rate, momentum or optimizer would do on the curvature this run has."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import pandas as pd
import streamlit as st

from diagnostics.charts import dynamics, factors, landscape
from diagnostics.charts.dynamics import Optimizer
from diagnostics.charts.own import RESCALED, momentum, own_name
from diagnostics.charts.parts import Frame
from diagnostics.run import Run
from diagnostics.views.common import View, begin_anew, figure, run_page
from diagnostics.views.curvature import latest_whole, not_measured
from diagnostics.views.text import md, number, plural, tex

NAMES: tuple[dynamics.Name, ...] = ("gradient descent", "momentum", "Nesterov", "RMSprop", "Adam")
MOMENTA = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
PATH_STEPS = (10, 30, 60, 120, 300, 1000)
COLUMNS = ["direction", "curvature", "residual"]
FATES = {"decays": "● decays", "oscillates": "■ oscillates", "diverges": "▲ diverges", "escapes": "◆ escapes"}


def page() -> None:
    run_page(body)


def body(view: View) -> None:
    table: Frame = view.run.table("curvature")
    table = table[table["eigenvalues"].map(lambda values: len(values) > 0 and np.isfinite(values[0]))]
    if table.empty:
        not_measured(view)
        return
    row = latest_whole(table)
    optimizer, steps = settings(view, row)
    directions = measured(row, optimizer)
    if directions.empty:
        st.info(f"The curvature that {optimizer.name} sees was not measured in this run. Choose another optimizer.")
        return
    headline(optimizer, directions)
    about(optimizer, view.run.meta["optimizer"], row)
    left, right = st.columns(2, gap="large")
    with left:
        title = f"Factor per step of each direction, after update {int(row['step']):,}"
        figure(factors.factors(optimizer, directions["curvature"].to_numpy(), title), "factors", title)
    with right:
        ravine(optimizer, steps, measured(row, Optimizer("gradient descent", optimizer.lr)))
    best(row)
    table_of_directions(optimizer, directions)


def settings(view: View, row: Frame) -> tuple[Optimizer, int]:
    """The sliders, which start where the run stood -> the optimizer, and for how many steps to draw it."""
    group = (view.run.meta["hyperparameters"] or [{}])[0]
    own = own_name(view.run.meta["optimizer"], group)
    rate = rate_at(view.run, int(row["step"]))
    rates = offered_rates(rate, float(row["eigenvalues"][0]))
    begin_anew(view, optimizer=own, eta=closest(rates, rate), mu=nearest_momentum(group))
    chosen = st.segmented_control("Optimizer", NAMES, key="optimizer", default=own, required=True, bind="query-params")
    name = cast(dynamics.Name, chosen) if chosen in NAMES else own
    left, middle, right = st.columns([3, 2, 2], gap="large")
    lr = left.select_slider("Learning rate η", rates, closest(rates, rate), key="eta", bind="query-params")
    mu = 0.0
    if name not in ("gradient descent", "RMSprop"):
        label = "β₁, Adam's momentum" if name == "Adam" else "Momentum μ"
        mu = middle.select_slider(label, MOMENTA, nearest_momentum(group), key="mu", bind="query-params")
    steps = right.select_slider("Steps drawn", PATH_STEPS, 60, key="steps", bind="query-params")
    return Optimizer(name, float(lr), float(mu)), int(steps)


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


def measured(row: Frame, optimizer: Optimizer) -> Frame:
    """Measured directions: name, curvature, residual. RMSprop and Adam have one, in their own, rescaled coordinates."""
    if optimizer.name in RESCALED:
        found = [("steepest, rescaled", row["preconditioned"], row["preconditioned_residual"])]
    else:
        found = [*unscaled(row)]
    directions = pd.DataFrame(found, columns=COLUMNS)
    return directions[np.isfinite(directions["curvature"].to_numpy(float))].reset_index(drop=True)


def unscaled(row: Frame) -> Iterator[tuple[str, float, float]]:
    pairs = list(zip(row["eigenvalues"], row["residuals"], strict=True))
    yield from ((f"eigenvalue {rank}", value, error) for rank, (value, error) in enumerate(pairs, 1))
    if len(pairs) < row["dimension"]:
        yield "smallest eigenvalue", row["smallest"], row["smallest_residual"]
    if np.isfinite(row["condition"]) and row["condition"] > 0 and own_coordinates(row):
        yield "along the last updates", row["preconditioned"] / row["condition"], 0.0


def certainly_positive(directions: Frame) -> Frame:
    """Curvatures above their own residual, ascending: below it they could as well be zero."""
    return directions[directions["curvature"] > directions["residual"].fillna(0.0)]["curvature"].sort_values()


def own_coordinates(row: Frame) -> bool:
    """Whether the optimizer works on the Hessian itself, not on a rescaled one."""
    return bool(np.isclose(row["preconditioned"], row["eigenvalues"][0], rtol=1e-3))


def headline(optimizer: Optimizer, directions: Frame) -> None:
    found = factors.fates(optimizer, directions["curvature"].to_numpy())
    top = float(found["curvature"].max())
    if not top > 0:
        st.title("No direction of positive curvature was measured", anchor=False)
        return
    limit = dynamics.largest_rate(optimizer, top)
    diverging = int((found["fate"] == "diverges").sum())
    if diverging:
        ratio = number(optimizer.lr / limit)
        st.title(f":red[▲] Unstable: the rate is {ratio} times the largest stable one", anchor=False)
    else:
        st.title(f":green[✓] Stable: the slowest measured direction {pace(found)}", anchor=False)
    worst = found.loc[found["curvature"].idxmax()]
    values = {
        "η · λ of the steepest direction": number(float(worst["product"])),
        "Its factor per step": number(float(worst["factor"]), 4),
        "Steps to shrink it tenfold": number(float(np.ceil(worst["steps"]))) if worst["factor"] < 1 else "never",
        "Largest stable rate": number(limit),
    }
    for column, (label, value) in zip(st.columns(4), values.items(), strict=True):
        column.metric(label, value, border=True, height="stretch")


def pace(found: Frame) -> str:
    """How long the slowest direction takes; one whose step is lost in rounding never moves."""
    steps = float(found[found["fate"].isin(["decays", "oscillates"])]["steps"].max())
    return f"shrinks tenfold in {plural(int(np.ceil(steps)), 'step')}" if np.isfinite(steps) else "does not move"


def about(optimizer: Optimizer, own: str, row: Frame) -> None:
    """What the numbers leave out."""
    name = optimizer.name
    if name not in RESCALED:
        if own and not any(known in own.lower() for known in ("sgd", "rmsprop", "adam")):
            st.caption(f"{md(own)} is not among these; shown is {name} on the Hessian itself.")
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


def best(row: Frame) -> None:
    """The textbook optimum for the measured range of curvatures."""
    positive = certainly_positive(measured(row, Optimizer("gradient descent", 1.0)))
    if positive.empty:
        return
    largest, smallest = float(positive.max()), float(positive.min())
    plain, heavy = dynamics.best_gradient_descent(largest, smallest), dynamics.best_heavy_ball(largest, smallest)
    st.header("The best settings for this spectrum", divider="gray")
    left, right = st.columns(2, gap="large")
    left.markdown(f"**Gradient descent**, factor {number(plain.factor, 4)} per step")
    left.latex(rf"\eta = \frac{{2}}{{L+m}} = {tex(plain.lr)}")
    right.markdown(f"**Heavy ball**, factor {number(heavy.factor, 4)} per step")
    right.latex(
        rf"\eta = \frac{{4}}{{(\sqrt L+\sqrt m)^2}} = {tex(heavy.lr)},\quad "
        rf"\mu = \left(\frac{{\sqrt\kappa-1}}{{\sqrt\kappa+1}}\right)^2 = {tex(heavy.momentum)}"
    )
    whole = len(row["eigenvalues"]) >= row["dimension"]
    bound = "" if whole else " Not every direction is measured, so the true m may be smaller: the factors are a bound."
    st.caption(
        f"L = {number(largest)} and m = {number(smallest)}: the largest and the smallest positive measured curvature, "
        f"κ = L/m = {number(largest / smallest)}.{bound}"
    )


def table_of_directions(optimizer: Optimizer, directions: Frame) -> None:
    found = factors.fates(optimizer, directions["curvature"].to_numpy())
    found.insert(0, "direction", directions["direction"])
    found.insert(2, "± residual", directions["residual"])
    found["steps"] = [
        "never" if np.isinf(steps) else f"{np.ceil(steps):,.0f} to {'grow' if factor >= 1 else 'shrink'} tenfold"
        for steps, factor in zip(found["steps"], found["factor"], strict=True)
    ]
    found["fate"] = found["fate"].map(FATES)
    names = {"curvature": "curvature λ", "product": "η·λ", "factor": "factor per step"}
    st.header("Each measured direction", divider="gray")
    st.dataframe(
        found.rename(columns=names),
        hide_index=True,
        key="directions",
        alt="Factor per step and steps of each direction",
    )
    st.caption("A direction of negative curvature is not approached but left: its steps are the escape time.")
