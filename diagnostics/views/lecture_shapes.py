"""Pictures of the lecture's landscape: bowls, minima, saddles, flats and cliffs."""

import numpy as np
import streamlit as st

from diagnostics.charts import curves, landscape, toys
from diagnostics.views.common import figure
from diagnostics.views.text import number


def convexity() -> None:
    name = st.selectbox("Loss as a function of the output z, target 1", list(toys.LOSSES), key="loss")
    low, high = st.slider("Ends of the chord", -4.0, 4.0, (-3.0, 2.0), 0.25, key="chord")
    z = np.linspace(-4, 4, 400)
    loss = toys.LOSSES[name]
    at = np.array([low, high])
    lines = {"loss": (z, loss(z)), "chord": (at, loss(at))}
    figure(
        curves.curves(lines, f"{name} and a chord", ("output z", "loss"), height=260), "convex", f"{name} with a chord"
    )
    inside = np.linspace(low, high, 200)
    chord = np.interp(inside, at, loss(at))
    if np.all(loss(inside) <= chord + 1e-9):
        st.markdown(":green[✓] This chord lies above the curve everywhere.")
    else:
        st.markdown(":red[▲] The curve rises above this chord: the loss is not convex in z.")
    permutation()


@st.cache_data(max_entries=1, show_spinner=False)
def example_network() -> toys.Network:
    start = np.random.default_rng(3)
    first = toys.Network(start.normal(size=3), start.normal(size=3), start.normal(size=3))
    return toys.trained(first, 6000, rate=0.1)[-1]


def permutation() -> None:
    network = example_network()
    order = st.segmented_control(
        "Order of the three hidden units", ["1 2 3", "2 3 1", "3 2 1"], default="2 3 1", required=True, key="order"
    )
    other = network.permuted(tuple(int(digit) - 1 for digit in str(order or "1 2 3").split()))
    averaged = network.averaged()
    lines = {
        "trained network": (toys.GRID, network(toys.GRID)),
        "hidden units reordered": (toys.GRID, other(toys.GRID)),
        "mean of all six orders": (toys.GRID, averaged(toys.GRID)),
    }
    figure(
        curves.curves(lines, "A network, the same reordered, and the average", ("input", "output"), height=280),
        "permuted",
        "Reordering changes nothing, averaging ruins the function",
    )
    left, middle, right = st.columns(3)
    left.metric("Loss as trained", number(toys.loss(network)), border=True)
    middle.metric("Reordered", number(toys.loss(other)), border=True)
    right.metric("Averaged", number(toys.loss(averaged)), border=True)
    st.caption("A convex cost could not be worse at the average than at all six of its equal points. This one is.")


def local_minima() -> None:
    start = st.slider("Start", -1.8, 1.8, 1.6, 0.05, key="start")
    rate = st.slider("Learning rate", 0.02, 0.6, 0.15, 0.02, key="rate")
    visited = toys.descend(toys.two_minima_slope, start, rate, 40)
    x = np.linspace(-1.8, 1.8, 300)
    drawn = curves.curves(
        {"cost": (x, toys.two_minima(x))},
        "Forty steps of gradient descent",
        ("θ", "cost"),
        visited=(visited, toys.two_minima(visited)),
    )
    figure(drawn, "minima", "Gradient descent on a cost with two minima")
    end = float(toys.two_minima(visited[-1:])[0])
    best = float(toys.two_minima(x).min())
    if end > best + 0.05:
        st.markdown(
            f":red[▲] It ends at a cost of {number(end)}; the other minimum has {number(best)}. "
            "Nothing that can be measured here tells."
        )
    else:
        st.markdown(
            f":green[✓] It ends at the better minimum, cost {number(end)}. Start on the other side of the hill."
        )


def saddle_points() -> None:
    aside = st.select_slider("Start aside of the ridge by", ["0", "1e-9", "1e-6", "0.001", "0.1"], "0.001", key="aside")
    offset, rate = float(aside), 0.2
    point, visited = np.array([-1.4, offset]), []
    for _ in range(200):
        visited.append(point)
        point = point - rate * np.array([point[0], point[1] ** 3 - point[1]])
    path = np.array(visited)
    drawn = landscape.landscape(
        lambda x, y: x**2 / 2 - y**2 / 2 + y**4 / 4,
        (-1.6, 1.6, -1.4, 1.4),
        {"gradient descent": path},
        "A saddle between two valleys",
        height=300,
    )
    figure(drawn, "saddle", "Gradient descent that runs onto a saddle point")
    left = np.flatnonzero(np.abs(path[:, 1]) > 0.5)
    st.markdown(
        f":green[✓] It has left the saddle after **{left[0]} steps**."
        if len(left)
        else ":red[▲] Exactly on the ridge it is **stuck**: the downhill gradient is zero."
    )
    twins(offset)


def twins(offset: float) -> None:
    """Two hidden units that start alike but for `offset`."""
    start = toys.Network(np.array([0.5, 0.5 + offset]), np.array([0.1, 0.1]), np.array([0.4, 0.4]))
    networks = toys.trained(start, 2000, rate=0.1)[::20]
    apart = np.array([abs(network.incoming[0] - network.incoming[1]) for network in networks])
    steps = np.arange(len(networks)) * 20.0
    if not apart.any():
        st.markdown("Two hidden units that start exactly alike are **identical after 2,000 steps too**.")
        return
    drawn = curves.curves(
        {"distance": (steps, np.maximum(apart, 1e-12))},
        "Two hidden units that started almost alike",
        ("step", "difference of their weights"),
        log=True,
        height=220,
    )
    figure(drawn, "twins", "Difference of two hidden units over steps")


def plateaux() -> None:
    name = st.segmented_control(
        "Activation", list(toys.ACTIVATIONS), default="logistic", required=True, key="activation"
    )
    mean = st.slider("Mean of the unit's input over the data", -10.0, 10.0, 4.0, 0.5, key="mean")
    spread = st.slider("Its deviation", 0.2, 5.0, 1.5, 0.1, key="spread")
    activation = toys.ACTIVATIONS[str(name or "logistic")]
    z = np.linspace(-10, 10, 400)
    inputs = np.exp(-((z - mean) ** 2) / (2 * spread**2))
    lines = {"φ(z)": (z, activation.value(z)), "φ'(z)": (z, activation.slope(z)), "inputs": (z, inputs)}
    top = 1.15 if name != "ReLU" else 4.0
    figure(
        curves.curves(
            lines,
            f"{name}: value, derivative, and where the data lies",
            ("input z of the unit", ""),
            y_domain=(min(-1.1 if name == "tanh" else -0.1, 0), top),
        ),
        "plateau",
        f"{name} and its derivative",
    )
    drawn_inputs = np.random.default_rng(0).normal(mean, spread, 10_000)
    slopes = activation.slope(drawn_inputs)
    flat = float(np.mean(slopes < 0.05 * max(float(activation.slope(z).max()), 1e-12)))
    left, right = st.columns(2)
    left.metric("Inputs in the flat region", f"{100 * flat:.1f} %", border=True)
    right.metric("Mean derivative", number(float(slopes.mean())), border=True)
    if name == "hard threshold":
        st.caption("A hard threshold has derivative zero everywhere: nothing before it ever gets a gradient.")


def cliffs() -> None:
    clip = st.toggle("Clip the gradient to norm 1", key="clip")
    rate = st.slider("Learning rate", 0.02, 0.4, 0.2, 0.02, key="cliff-rate")
    visited = toys.descend(toys.cliff_slope, 0.7, rate, 60, 1.0 if clip else np.inf)
    x = np.linspace(-0.5, 4.0, 2001)
    y = toys.cliff(x)
    drawn = curves.curves(
        {"cost": (x, y)},
        "Sixty steps towards a wall",
        ("θ", "cost"),
        visited=(visited, toys.cliff(visited)),
        y_domain=(0, 2),
    )
    figure(drawn, "cliff", "Gradient descent that meets a cliff")
    jump = float(np.abs(np.diff(visited)).max())
    largest = float(np.abs(toys.cliff_slope(visited)).max())
    st.markdown(f"The longest step is **{number(jump)}**, the largest gradient **{number(largest)}**.")
