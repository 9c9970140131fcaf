"""Saddle points: weights that start alike stay alike, and a start near zero is a start near a saddle point."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sample_runs.data import Data, digits
from sample_runs.training import Sample, squared_error


def _classifier(start: Callable[[Tensor], Tensor]) -> Sample:
    """A tanh network on digits whose weight matrices start as `start` makes them."""
    hidden, output = nn.Linear(64, 32), nn.Linear(32, 10)
    for layer in (hidden, output):
        start(layer.weight)
        nn.init.zeros_(layer.bias)
    model = nn.Sequential(hidden, nn.Tanh(), output)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Sample(model, optimizer, F.cross_entropy, digits(), steps=300, batch=128)


def symmetry_zero_start(seed: int) -> Sample:
    """All weights zero: every hidden unit outputs 0 and gets no gradient; only the output biases learn."""
    return _classifier(nn.init.zeros_)


def symmetry_constant_start(seed: int) -> Sample:
    """All weights 0.1: 32 hidden units that always do the same are one unit."""
    return _classifier(lambda weight: nn.init.constant_(weight, 0.1))


def symmetry_random_start(seed: int) -> Sample:
    """Small random values break the symmetry."""
    return _classifier(lambda weight: nn.init.normal_(weight, std=0.1))


def _linear_network(std: float) -> Sample:
    data = digits()
    onehot = Data(data.x, F.one_hot(data.y, 10).float() - 0.1, data.recipe + "; targets one-hot, centred")
    layers = nn.Linear(64, 32, bias=False), nn.Linear(32, 10, bias=False)
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.025)
    return Sample(model, optimizer, squared_error, onehot, steps=120, curvature_every=10)


def saddle_point_near_zero(seed: int) -> Sample:
    """A product of two matrices started near zero: the gradient is almost 0, yet directions lead down."""
    return _linear_network(1e-4)


def saddle_point_larger_start(seed: int) -> Sample:
    """The same product started with entries of size 0.1, away from the saddle point at zero."""
    return _linear_network(0.1)
