"""The small worlds of the lecture page: functions to descend, a network to permute, data to standardize. NumPy only."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Function = Callable[[NDArray], NDArray]


def logistic(z: NDArray) -> NDArray:
    return (1 + np.tanh(np.asarray(z, float) / 2)) / 2  # does not overflow


# Loss of an output z for the target 1.
LOSSES: dict[str, Function] = {
    "squared error": lambda z: (z - 1) ** 2 / 2,
    "logistic cross-entropy": lambda z: np.logaddexp(0, -z),
    "0-1 loss": lambda z: (z < 0).astype(float),
    "squared error of a logistic output": lambda z: (logistic(z) - 1) ** 2 / 2,
}


@dataclass(frozen=True)
class Activation:
    """An activation function and its derivative."""

    value: Function
    slope: Function


ACTIVATIONS = {
    "logistic": Activation(logistic, lambda z: logistic(z) * (1 - logistic(z))),
    "tanh": Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "ReLU": Activation(lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "hard threshold": Activation(lambda z: (z > 0).astype(float), lambda z: np.zeros_like(z)),
}


def descend(slope: Function, start: float, rate: float, steps: int, clip: float = np.inf) -> NDArray:
    """Gradient descent on one variable, (steps + 1,); the gradient is clipped to `clip`."""
    visited = [start]
    for _ in range(steps):
        gradient = float(np.clip(slope(np.array(visited[-1])), -clip, clip))
        visited.append(float(np.clip(visited[-1] - rate * gradient, -1e6, 1e6)))
    return np.array(visited)


def two_minima(x: NDArray) -> NDArray:
    return x**4 / 4 - x**2 / 2 + 0.15 * x


def two_minima_slope(x: NDArray) -> NDArray:
    return x**3 - x + 0.15


WALL, SLOPE, WIDTH = 1.5, 0.3, 0.01  # height of the cliff, steepness of the ground before it, width of the wall


def cliff(x: NDArray) -> NDArray:
    """Ground that falls gently towards a wall at x = 0."""
    return SLOPE * x + WALL * logistic(-x / WIDTH)


def cliff_slope(x: NDArray) -> NDArray:
    wall = logistic(-x / WIDTH)
    return SLOPE - WALL * wall * (1 - wall) / WIDTH


@dataclass(frozen=True)
class Network:
    """One input, K tanh units, one linear output: y = v . tanh(w x + b)."""

    incoming: NDArray  # (K,)
    bias: NDArray  # (K,)
    outgoing: NDArray  # (K,)

    def __call__(self, x: NDArray) -> NDArray:
        return np.tanh(np.outer(x, self.incoming) + self.bias) @ self.outgoing

    def permuted(self, order: tuple[int, ...]) -> "Network":
        index = list(order)
        return Network(self.incoming[index], self.bias[index], self.outgoing[index])

    def averaged(self) -> "Network":
        """The mean of the parameters over all permutations of the hidden units: all units become the same."""
        all_orders = [self.permuted(order) for order in permutations(range(len(self.bias)))]
        means = (np.mean([getattr(n, f) for n in all_orders], axis=0) for f in ("incoming", "bias", "outgoing"))
        return Network(*means)


GRID = np.linspace(-3, 3, 121)
TARGET = np.sin(1.5 * GRID)


def loss(network: Network) -> float:
    """Mean squared error against the target on the grid."""
    return float(np.mean((network(GRID) - TARGET) ** 2))


def trained(network: Network, steps: int, rate: float = 0.05) -> list[Network]:
    """Plain gradient descent on the target; every network on the way, (steps + 1)."""
    visited = [network]
    for _ in range(steps):
        now = visited[-1]
        hidden = np.tanh(np.outer(GRID, now.incoming) + now.bias)
        error = 2 * (hidden @ now.outgoing - TARGET) / len(GRID)
        back = np.outer(error, now.outgoing) * (1 - hidden**2)
        visited.append(
            Network(
                now.incoming - rate * (GRID @ back),
                now.bias - rate * back.sum(axis=0),
                now.outgoing - rate * (hidden.T @ error),
            )
        )
    return visited


def features(ratio: float, offset: float, standardized: bool, rows: int = 100) -> NDArray:
    """Two independent features (N, 2): the second `ratio` times as large, both `offset` deviations off centre."""
    x = np.random.default_rng(0).standard_normal((rows, 2))
    x = (x + offset) * np.array([1.0, ratio])
    return (x - x.mean(axis=0)) / x.std(axis=0) if standardized else x


def condition_number(hessian: NDArray) -> float:
    values = np.linalg.eigvalsh(hessian)
    return float(values[-1] / values[0]) if values[0] > 0 else np.inf
