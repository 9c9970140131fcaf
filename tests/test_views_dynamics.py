"""The what-if maths against torch.optim on the same quadratic, and against closed forms and numerical optima."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from diagnostics.charts import dynamics, factors, toys
from diagnostics.charts.dynamics import Optimizer

HESSIAN = np.array([[3.0, 0.5], [0.5, 0.2]])
START = np.array([1.0, -0.7])

OPTIMIZERS = {
    Optimizer("gradient descent", 0.3): lambda p: torch.optim.SGD(p, lr=0.3),
    Optimizer("momentum", 0.2, 0.9): lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
    Optimizer("Nesterov", 0.2, 0.8): lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8, nesterov=True),
    Optimizer("RMSprop", 0.05, smoothing=0.9): lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9),
    Optimizer("Adam", 0.1, 0.9, 0.99): lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.99)),
}


def torch_path(make, steps: int, hessian: np.ndarray = HESSIAN, start: np.ndarray = START) -> np.ndarray:
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    matrix, optimizer, visited = torch.tensor(hessian), make([x]), [start]
    for _ in range(steps):
        optimizer.zero_grad()
        (x @ matrix @ x / 2).backward()
        optimizer.step()
        visited.append(x.detach().numpy().copy())
    return np.array(visited)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)
def test_paths_are_those_of_torch(optimizer):
    ours = dynamics.path(optimizer, HESSIAN, START, 60)  # later RMSprop divides rounding errors by rounding errors
    np.testing.assert_allclose(ours, torch_path(OPTIMIZERS[optimizer], 60), rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS)[:3], ids=lambda optimizer: optimizer.name)
@pytest.mark.parametrize("curvature", [-0.4, 0.05, 1.0, 4.0, 12.0])
def test_the_factor_is_the_growth_that_torch_shows(optimizer, curvature):
    """The size of (x_t, x_{t-1}) over many steps, per step; complex roots make single steps swing."""
    path = torch_path(OPTIMIZERS[optimizer], 400, np.array([[curvature]]), np.array([1.0]))[:, 0]
    sizes = np.log(np.hypot(path[1:], path[:-1]))
    usable = np.isfinite(sizes)
    slope = np.polyfit(np.arange(usable.sum())[50:], sizes[usable][50:], 1)[0]
    assert dynamics.factor(optimizer, np.array([curvature]))[0] == pytest.approx(np.exp(slope), rel=5e-3)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS)[:3], ids=lambda optimizer: optimizer.name)
def test_the_largest_rate_is_where_the_factor_passes_one(optimizer):
    limit = dynamics.largest_rate(optimizer, 2.0)
    for scale, stable in ((0.999, True), (1.001, False)):
        tried = Optimizer(optimizer.name, limit * scale, optimizer.momentum)
        assert (dynamics.factor(tried, np.array([2.0]))[0] < 1) == stable


def test_adam_is_stable_up_to_38_over_the_rate():
    assert dynamics.largest_rate(Optimizer("Adam", 1.0, 0.9), 1.0) == pytest.approx(38)


def test_the_three_cases_of_the_lecture():
    found = factors.fates(Optimizer("gradient descent", 1.0), np.array([0.5, 1.5, 2.5, -0.1]))
    assert found["fate"].tolist() == ["decays", "oscillates", "diverges", "escapes"]
    np.testing.assert_allclose(found["factor"], [0.5, 0.5, 1.5, 1.1])


def test_steps_to_shrink_tenfold_and_to_escape():
    assert dynamics.steps_to(0.1, np.array([0.1, 0.5]))[1] == pytest.approx(np.log(0.1) / np.log(0.5))
    assert dynamics.steps_to(10, np.array([1.1]))[0] == pytest.approx(np.log(10) / np.log(1.1))
    assert np.isinf(dynamics.steps_to(0.1, np.array([1.0, 1.2]))).all()


def spectral_radius(lr: float, mu: float, curvature: float) -> float:
    """Of heavy ball's 2x2 iteration, by a general eigenvalue solver."""
    matrix = np.array([[1 + mu - lr * curvature, -mu], [1.0, 0.0]])
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def swings(name: str, mu: float, product: float) -> bool:
    """Whether the 2x2 iteration at this rate x curvature has a complex pair or a dominant negative eigenvalue."""
    first, second = {
        "momentum": (1 + mu - product, -mu),
        "Nesterov": ((1 + mu) * (1 - product), -mu * (1 - product)),
        "Adam": (1 + mu - (1 - mu) * product, -mu),
    }[name]
    dominant = max(np.linalg.eigvals([[first, second], [1.0, 0.0]]), key=abs)
    return bool(abs(dominant.imag) > 1e-12 or dominant.real < 0)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("momentum", lambda mu: 2 * (1 + mu)),
        ("Nesterov", lambda mu: 2 * (1 + mu) / (1 + 2 * mu)),
        ("Adam", lambda mu: 2 * (1 + mu) / (1 - mu)),
    ],
)
def test_a_direction_swings_above_the_ratio_at_which_its_roots_meet(name, limit, mu):
    s = dynamics.swings_above(name, mu)
    assert not swings(name, mu, 0.999 * s * limit(mu)) and swings(name, mu, 1.001 * s * limit(mu))


@pytest.mark.parametrize(("largest", "smallest"), [(10.0, 0.1), (3.0, 2.0), (1e4, 1.0)])
def test_the_best_settings_are_what_an_optimizer_finds(largest, smallest):
    plain = dynamics.best_gradient_descent(largest, smallest)
    found = minimize(
        lambda x: max(abs(1 - np.exp(x[0]) * largest), abs(1 - np.exp(x[0]) * smallest)),
        [np.log(1 / largest)],
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-12},
    )
    assert plain.lr == pytest.approx(np.exp(found.x[0]), rel=1e-4)
    assert plain.factor == pytest.approx(found.fun, rel=1e-6)
    heavy = dynamics.best_heavy_ball(largest, smallest)
    best = max(spectral_radius(heavy.lr, heavy.momentum, value) for value in (largest, smallest))
    assert heavy.factor == pytest.approx(best, rel=1e-4)
    for lr, mu in ((1.05, 1), (0.95, 1), (1, 0.97), (1, min(1.03, 0.999 / heavy.momentum))):
        others = (spectral_radius(heavy.lr * lr, heavy.momentum * mu, value) for value in (largest, smallest))
        assert max(others) >= best - 1e-6


def test_reordering_hidden_units_changes_nothing_and_averaging_ruins_it():
    rng = np.random.default_rng(3)
    network = toys.trained(toys.Network(*(rng.normal(size=3) for _ in range(3))), 3000, rate=0.1)[-1]
    np.testing.assert_allclose(network.permuted((2, 0, 1))(toys.GRID), network(toys.GRID), atol=1e-12)
    assert toys.loss(network.averaged()) > 5 * toys.loss(network)


def test_the_toy_network_descends_along_torchs_gradient():
    rng = np.random.default_rng(0)
    network = toys.Network(*(rng.normal(size=2) for _ in range(3)))
    w, b, v = (torch.tensor(p, requires_grad=True) for p in (network.incoming, network.bias, network.outgoing))
    x, t = torch.tensor(toys.GRID), torch.tensor(toys.TARGET)
    ((torch.tanh(x[:, None] * w + b) @ v - t) ** 2).mean().backward()
    moved = toys.trained(network, 1, rate=1.0)[-1]
    for ours, old, gradient in ((moved.incoming, w, w.grad), (moved.bias, b, b.grad), (moved.outgoing, v, v.grad)):
        np.testing.assert_allclose(ours, (old - gradient).detach().numpy(), atol=1e-12)


@pytest.mark.parametrize("name", ["squared error", "logistic cross-entropy"])
def test_the_losses_the_lecture_calls_convex_are(name):
    z = np.linspace(-8, 8, 400)
    assert (np.diff(toys.LOSSES[name](z), 2) >= -1e-12).all()


@pytest.mark.parametrize("name", ["0-1 loss", "squared error of a logistic output"])
def test_the_losses_with_plateaux_are_not(name):
    z = np.linspace(-8, 8, 400)
    assert (np.diff(toys.LOSSES[name](z), 2) < -1e-6).any()


@pytest.mark.parametrize("name", toys.ACTIVATIONS)
def test_derivatives_are_those_of_finite_differences(name):
    z = np.linspace(-4, 4, 81) + 0.013  # off the kinks
    activation = toys.ACTIVATIONS[name]
    numeric = (activation.value(z + 1e-6) - activation.value(z - 1e-6)) / 2e-6
    np.testing.assert_allclose(activation.slope(z), numeric, atol=1e-6)
