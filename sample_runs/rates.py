"""Learning Rate, Momentum: one linear regression on the lecture's second table, standardized, under different settings.

Least squares on a linear model is exactly the quadratic of the lecture, so `lr = c / lambda_max` does what it says.
"""

import torch
from torch import nn
from torch.nn import functional as F

from sample_runs.data import OFFSETS, Data, digits, table
from sample_runs.training import Sample


def sharpest(data: Data) -> float:
    """Largest eigenvalue of the Hessian `2 X'X / n` of least squares with a bias."""
    x = torch.cat([data.x, torch.ones(len(data.x), 1)], dim=1).double()
    return float(torch.linalg.eigvalsh(2 * x.T @ x / len(x))[-1])


def linear(data: Data) -> nn.Linear:
    """A linear model that starts at zero."""
    model = nn.Linear(data.x.shape[1], 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def _regression(seed: int, times: float, *, momentum: float = 0.0, steps: int = 100) -> Sample:
    data = table(OFFSETS, seed, standardized=True)
    model = linear(data)
    rate = times / sharpest(data)
    config = {"learning rate": f"{times} / lambda_max"}
    return Sample(
        model, torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum), F.mse_loss, data, steps, config=config
    )


def lr_fitting(seed: int) -> Sample:
    """The cure of the three below: `1 / lambda_max` brings the steepest direction home in one step."""
    return _regression(seed, 1.0)


def lr_too_small(seed: int) -> Sample:
    """A thousandth of that: the loss creeps."""
    return _regression(seed, 0.001)


def lr_oscillation(seed: int) -> Sample:
    """`1.99 / lambda_max`: every update jumps across the valley and lands almost as high on the other side."""
    return _regression(seed, 1.99, steps=60)


def lr_unstable(seed: int) -> Sample:
    """`2.5 / lambda_max`: every update lands half again as far from the floor as it started."""
    return _regression(seed, 2.5)


def momentum_too_high(seed: int) -> Sample:
    """`mu = 0.999`: hardly any friction, so the puck rolls up the other side for the whole run."""
    return _regression(seed, 0.1, momentum=0.999, steps=300)


def momentum_lower(seed: int) -> Sample:
    """The same step with `mu = 0.9` settles."""
    return _regression(seed, 0.1, momentum=0.9, steps=300)


def _tanh_classifier(rate: float, steps: int, curvature_every: int = 20) -> Sample:
    data = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    onehot = Data(data.x, F.one_hot(data.y, 10).float(), data.recipe + "; targets one-hot")
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return Sample(model, optimizer, F.mse_loss, onehot, steps, curvature_every=curvature_every)


def lr_unstable_digits(seed: int) -> Sample:
    """A network on digits, started at three times the largest stable learning rate."""
    return _tanh_classifier(6.0, 100)


def lr_stable_digits(seed: int) -> Sample:
    """The same network below the limit."""
    return _tanh_classifier(1.0, 300)


def edge_of_stability(seed: int) -> Sample:
    """Full-batch gradient descent: the sharpness rises to `2 / lr` and hovers there while the loss keeps falling."""
    return _tanh_classifier(1.5, 1200, curvature_every=30)
