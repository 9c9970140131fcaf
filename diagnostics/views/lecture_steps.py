"""Pictures of how steps behave: learning rate, ravines, normalization, momentum, RMSprop and Adam."""

import numpy as np
import streamlit as st

from diagnostics.charts import curves, dynamics, landscape, toys
from diagnostics.charts.dynamics import Optimizer
from diagnostics.charts.factors import FATES
from diagnostics.views.common import figure
from diagnostics.views.text import number

FRAME = (-1.3, 1.3, -1.3, 1.3)
START = np.array([-1.0, 0.8])


def learning_rate() -> None:
    product = st.slider("α·λ: learning rate times curvature", 0.02, 2.4, 1.6, 0.02, key="product")
    visited = toys.descend(lambda x: x, -1.0, product, 25)
    reach = 2.2
    x = np.linspace(-reach, reach, 200)
    drawn = curves.curves(
        {"cost": (x, x**2 / 2)},
        "25 steps on a valley of curvature λ",
        ("θ", "cost"),
        visited=(visited, visited**2 / 2),
        y_domain=(0, 1.8),
    )
    figure(drawn, "rate-picture", "Gradient descent in one dimension")
    factor = 1 - product
    if product <= 1:
        st.markdown(f":green[✓] **Decays.** Every step multiplies the distance by $1-\\alpha\\lambda = {factor:.2f}$.")
    elif product <= 2:
        fate = "shrinks" if product < 2 else "never settles"
        st.markdown(f":blue[■] **Oscillates.** The factor is ${factor:.2f}$: it changes sides every step and {fate}.")
    else:
        st.markdown(f":red[▲] **Unstable.** The factor is ${factor:.2f}$: every step lands farther away.")
    lines = {
        "decays: 0 < αλ ≤ 1": _abs_factor(0, 1),
        "oscillates: 1 < αλ ≤ 2": _abs_factor(1, 2),
        "unstable: αλ > 2": _abs_factor(2, 2.4),
    }
    figure(
        curves.curves(
            lines,
            "Size of the factor per step",
            ("αλ", "|1 - αλ|"),
            visited=(np.array([product]), np.array([abs(factor)])),
            height=240,
            colours=[FATES[fate][0] for fate in ("decays", "oscillates", "diverges")],
        ),
        "three-cases",
        "The three cases of the learning rate",
    )


def _abs_factor(low: float, high: float) -> curves.Points:
    products = np.linspace(low, high, 50)
    return products, np.abs(1 - products)


def ravines() -> None:
    kappa = st.select_slider("Condition number κ", [1, 3, 10, 30, 100], 10, key="kappa")
    product = st.slider("α·λ of the steepest direction", 0.1, 2.1, 1.8, 0.05, key="steepest")
    steps = 60
    hessian = np.diag([1.0 / kappa, 1.0])
    path = dynamics.path(Optimizer("gradient descent", product), hessian, START, steps)
    figure(
        landscape.landscape(
            landscape.quadratic(hessian),
            FRAME,
            {"gradient descent": path},
            f"{steps} steps in a ravine",
            axes=("along the ravine", "across"),
        ),
        "ravine-toy",
        "Gradient descent in a ravine",
    )
    factors = dynamics.factor(Optimizer("gradient descent", product), np.array([1.0, 1.0 / kappa]))
    along = dynamics.steps_to(0.1, factors[1:])[0]
    left, middle, right = st.columns(3)
    left.metric("Factor across", number(float(factors[0])), border=True)
    middle.metric("Factor along", number(float(factors[1]), 4), border=True)
    right.metric("Steps to a tenth, along", number(float(np.ceil(along))), border=True)


def normalization() -> None:
    ratio = st.slider("Second feature larger by a factor of", 1.0, 30.0, 8.0, 0.5, key="ratio")
    offset = st.slider("Both features off centre by (deviations)", 0.0, 10.0, 0.0, 0.25, key="offset")
    standardized = st.toggle("Standardize the inputs", key="standardized")
    x = toys.features(ratio, offset, standardized)
    hessian = x.T @ x / len(x)
    rate = 1.8 / float(np.linalg.eigvalsh(hessian)[-1])
    path = dynamics.path(Optimizer("gradient descent", rate), hessian, START, 60)
    figure(
        landscape.landscape(
            landscape.quadratic(hessian),
            FRAME,
            {"gradient descent": path},
            "Squared error over the two weights, and 60 steps",
            axes=("error of w₁", "error of w₂"),
        ),
        "normalized",
        "Gradient descent on a linear regression",
    )
    st.metric("Condition number κ", number(toys.condition_number(hessian)), border=True)
    tables = {
        "first": [[114.8, 0.00323], [338.1, 0.00183], [98.8, 0.00279]],
        "second": [[1003.2, 1005.1], [1001.1, 1008.2], [998.3, 1003.4]],
    }
    raw = {name: toys.condition_number(np.array(rows).T @ np.array(rows) / 3) for name, rows in tables.items()}
    st.caption(
        f"The rows the lecture prints have κ = {raw['first']:.1e} (first table) and {raw['second']:.1e} (second): "
        "no picture could show that."
    )


def momentum() -> None:
    mu = st.slider("Momentum μ", 0.0, 0.99, 0.9, 0.01, key="toy-mu")
    rate = st.slider("Learning rate α (limit of gradient descent: 2)", 0.05, 2.0, 0.3, 0.05, key="toy-rate")
    hessian = np.diag([1 / 50, 1.0])
    ways = {
        "gradient descent": Optimizer("gradient descent", rate),
        f"momentum {mu:g}": Optimizer("momentum", rate, mu),
    }
    paths = {name: dynamics.path(way, hessian, START, 80) for name, way in ways.items()}
    figure(
        landscape.landscape(landscape.quadratic(hessian), FRAME, paths, "80 steps in a ravine, κ = 50", height=330),
        "puck",
        "Momentum against gradient descent",
    )
    steps = np.arange(101)
    speed = rate * (1 - mu**steps) / (1 - mu)
    lines = {"speed": (steps, speed), "terminal velocity α/(1-μ)": (steps, np.full(101, rate / (1 - mu)))}
    figure(
        curves.curves(lines, "Speed on a constant slope of 1", ("step", "speed"), height=230),
        "terminal",
        "Speed approaches the terminal velocity",
    )
    st.caption(f"Terminal velocity α/(1-μ) = {number(rate / (1 - mu))}, {number(1 / (1 - mu))} times a single step.")


def adaptive() -> None:
    angle = st.slider("Turn the ravine by (degrees)", 0, 45, 0, 5, key="angle")
    gamma = st.select_slider("γ of RMSprop (PyTorch's alpha is 1 - γ)", [0.01, 0.05, 0.1, 0.3], 0.1, key="gamma")
    hessian = dynamics.rotated((1 / 100, 1.0), angle)
    ways = {
        "gradient descent": Optimizer("gradient descent", 1.8),
        "RMSprop": Optimizer("RMSprop", 0.02, smoothing=1 - float(gamma)),
        "Adam": Optimizer("Adam", 0.06, 0.9),
    }
    start = _turn(angle) @ START
    paths = {name: dynamics.path(way, hessian, start, 120) for name, way in ways.items()}
    figure(
        landscape.landscape(landscape.quadratic(hessian), FRAME, paths, "120 steps in a ravine, κ = 100"),
        "adaptive",
        "RMSprop and Adam in a turned ravine",
    )
    losses = {name: float(path[-1] @ hessian @ path[-1] / 2) for name, path in paths.items()}
    for column, (name, value) in zip(st.columns(3), losses.items(), strict=True):
        column.metric(f"Cost after {name}", number(value), border=True)


def _turn(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
