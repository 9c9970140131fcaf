"""What an optimizer does on a quadratic: factors per step, best settings, and whole paths. NumPy only.

Conventions are PyTorch's: heavy ball `v <- mu v + g; x <- x - eta v`, Nesterov `x <- x - eta (g + mu v)`, RMSprop with
smoothing `alpha` (the lecture's gamma is `1 - alpha`), Adam with bias correction. Formulas: lecture, "Ill-conditioned
curvature: gradient descent dynamics"; Polyak 1964 for heavy ball.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Name = Literal["gradient descent", "momentum", "Nesterov", "RMSprop", "Adam"]


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and its settings; `momentum` is Adam's beta1, `smoothing` RMSprop's alpha and Adam's beta2."""

    name: Name
    lr: float
    momentum: float = 0.0
    smoothing: float = 0.999
    epsilon: float = 1e-8


def roots(optimizer: Optimizer, curvature: NDArray) -> NDArray:
    """Roots (N, 2) of the iteration along directions of `curvature` (N,): x_t is a sum of their powers.

    Adam and RMSprop are taken with a frozen preconditioner, and `curvature` as that of P^-1/2 H P^-1/2.
    """
    step, mu = optimizer.lr * np.asarray(curvature, float), optimizer.momentum
    match optimizer.name:
        case "gradient descent" | "RMSprop":
            linear, constant = 1 - step, np.zeros_like(step)
        case "momentum":
            linear, constant = 1 + mu - step, np.full_like(step, mu)
        case "Nesterov":
            linear, constant = (1 + mu) * (1 - step), mu * (1 - step)
        case "Adam":
            linear, constant = 1 + mu - (1 - mu) * step, np.full_like(step, mu)
    root = np.sqrt(linear.astype(complex) ** 2 - 4 * constant)
    return np.stack([(linear + root) / 2, (linear - root) / 2], axis=-1)


def factor(optimizer: Optimizer, curvature: NDArray) -> NDArray:
    """Size by which each direction is multiplied per step in the long run, (N,): `|1 - eta lambda|` for gradient
    descent, the spectral radius of the 2x2 iteration with momentum. Above 1 the direction diverges."""
    return np.abs(roots(optimizer, curvature)).max(axis=-1)


def oscillates(optimizer: Optimizer, curvature: NDArray) -> NDArray:
    """Whether the direction swings around its minimum, (N,): the dominant root is negative or complex."""
    pairs: NDArray[np.complex128] = roots(optimizer, curvature)
    dominant = np.take_along_axis(pairs, np.abs(pairs).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return (dominant.real < 0) | (np.abs(dominant.imag) > 1e-12)


def swings_above(name: Name, mu: float) -> float:
    """The stability ratio s above which a direction swings: the curvature at which the two roots meet (at 0 without
    momentum), over that at which the direction becomes unstable. Far below 1/2 with momentum: 7e-4 at mu = 0.9."""
    if name == "Nesterov":
        return ((1 - mu) / (1 + mu)) ** 2 * (1 + 2 * mu) / (2 * (1 + mu))
    return (1 - mu**0.5) ** 2 / (2 * (1 + mu))


def steps_to(ratio: float, factors: NDArray) -> NDArray:
    """Steps until a direction has changed by `ratio` (0.1: shrunk tenfold, 10: grown tenfold); inf if it never does."""
    with np.errstate(divide="ignore"):
        steps = np.log(ratio) / np.log(np.asarray(factors, float))
    return np.where(steps >= 0, steps, np.inf)


def largest_rate(optimizer: Optimizer, curvature: float) -> float:
    """The learning rate at which a direction of this curvature becomes unstable (its limit for s = 1)."""
    mu = optimizer.momentum
    gain = {"momentum": 1 / (1 + mu), "Nesterov": (1 + 2 * mu) / (1 + mu), "Adam": (1 - mu) / (1 + mu)}
    return 2 / (curvature * gain.get(optimizer.name, 1.0))


@dataclass(frozen=True)
class Best:
    """The fastest settings on a quadratic with curvatures between `smallest` and `largest`, and their worst factor."""

    lr: float
    momentum: float
    factor: float


def best_gradient_descent(largest: float, smallest: float) -> Best:
    """eta = 2 / (L + m), factor (kappa - 1) / (kappa + 1)."""
    return Best(2 / (largest + smallest), 0.0, (largest - smallest) / (largest + smallest))


def best_heavy_ball(largest: float, smallest: float) -> Best:
    """eta = 4 / (sqrt L + sqrt m)^2, beta = ((sqrt kappa - 1) / (sqrt kappa + 1))^2, factor sqrt beta."""
    high, low = np.sqrt(largest), np.sqrt(smallest)
    root = (high - low) / (high + low)
    return Best(float(4 / (high + low) ** 2), float(root**2), float(root))


def path(optimizer: Optimizer, hessian: NDArray, start: NDArray, steps: int) -> NDArray:
    """Iterates (steps + 1, D) from `start` on J = x'Hx / 2; stops (repeats) once the size passes 1e12."""
    x = np.array(start, float)
    velocity, square = np.zeros_like(x), np.zeros_like(x)
    visited = [x.copy()]
    for t in range(1, steps + 1):
        if np.abs(x).max() < 1e12:
            gradient = hessian @ x
            x, velocity, square = update(optimizer, t, x, gradient, velocity, square)
        visited.append(x.copy())
    return np.array(visited)


def update(
    optimizer: Optimizer, t: int, x: NDArray, gradient: NDArray, velocity: NDArray, square: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """One step of torch.optim's update -> new x, momentum buffer, mean square."""
    mu, keep = optimizer.momentum, optimizer.smoothing
    match optimizer.name:
        case "gradient descent":
            return x - optimizer.lr * gradient, velocity, square
        case "momentum":
            velocity = mu * velocity + gradient
            return x - optimizer.lr * velocity, velocity, square
        case "Nesterov":
            velocity = mu * velocity + gradient
            return x - optimizer.lr * (gradient + mu * velocity), velocity, square
        case "RMSprop":
            square = keep * square + (1 - keep) * gradient**2
            return x - optimizer.lr * gradient / (np.sqrt(square) + optimizer.epsilon), velocity, square
        case "Adam":
            velocity = mu * velocity + (1 - mu) * gradient
            square = keep * square + (1 - keep) * gradient**2
            scale = np.sqrt(square / (1 - keep**t)) + optimizer.epsilon
            return x - optimizer.lr * velocity / (1 - mu**t) / scale, velocity, square


def rotated(curvatures: tuple[float, float], degrees: float) -> NDArray:
    """A 2x2 Hessian with these eigenvalues, its first eigenvector turned by `degrees` from the first axis."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag(curvatures) @ turn.T
