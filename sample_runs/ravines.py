"""Ill-conditioned curvature, normalization, momentum and Adam: the lecture's tables, and other ravines."""

from collections.abc import Callable

from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from sample_runs.data import OFFSETS, SCALES, Data, digits, polynomial, table
from sample_runs.rates import linear, sharpest
from sample_runs.training import Sample, squared_error


def _regression(data: Data, steps: int = 300) -> Sample:
    """Gradient descent at `0.8 / lambda_max`, short of the first oscillation."""
    model = linear(data)
    rate = 0.8 / sharpest(data)
    return Sample(
        model, SGD(model.parameters(), lr=rate), F.mse_loss, data, steps, config={"learning rate": "0.8 / lambda_max"}
    )


def ravine_unscaled_features(seed: int) -> Sample:
    """The lecture's first table: the weight of the column of scale 0.003 gets no useful step."""
    return _regression(table(SCALES, seed))


def ravine_standardized(seed: int) -> Sample:
    """The same rows, each column standardized."""
    return _regression(table(SCALES, seed, standardized=True))


def ravine_uncentered_features(seed: int) -> Sample:
    """The lecture's second table: columns near 1000 that vary by 2 or 3."""
    return _regression(table(OFFSETS, seed))


def ravine_centered(seed: int) -> Sample:
    """The same rows, each column standardized; what is left is the columns' correlation."""
    return _regression(table(OFFSETS, seed, standardized=True))


def _network(hidden: type[nn.Module], normalize: bool) -> Sample:
    """Two hidden layers of 64 units; the rate is half of the largest stable one of the logistic network."""
    data = digits()
    onehot = Data(data.x, F.one_hot(data.y, 10).float(), data.recipe + "; targets one-hot")
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(64, 64), hidden(), *([nn.BatchNorm1d(64)] if normalize else [])]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return Sample(model, SGD(model.parameters(), lr=0.025), squared_error, onehot, steps=150)


def ravine_sigmoid(seed: int) -> Sample:
    """Logistic hidden units output about 1/2 on every input: their common offset is the ravine's steep wall."""
    return _network(nn.Sigmoid, False)


def ravine_tanh(seed: int) -> Sample:
    """tanh units range over both signs."""
    return _network(nn.Tanh, False)


def ravine_batch_norm(seed: int) -> Sample:
    """Batch normalization of each hidden layer's outputs centres them, logistic ones too."""
    return _network(nn.Sigmoid, True)


def _polynomial(seed: int, optimizer: Callable[[nn.Module, float], Optimizer]) -> Sample:
    data = polynomial(seed)
    model = linear(data)
    return Sample(model, optimizer(model, 0.8 / sharpest(data)), F.mse_loss, data, steps=400)


def ravine_gradient_descent(seed: int) -> Sample:
    """Powers of one variable, standardized, are still strongly correlated: a ravine that lies across the axes."""
    return _polynomial(seed, lambda model, rate: SGD(model.parameters(), lr=rate))


def ravine_momentum(seed: int) -> Sample:
    """The same ravine with momentum."""
    return _polynomial(seed, lambda model, rate: SGD(model.parameters(), lr=rate, momentum=0.95))


def ravine_adam(seed: int) -> Sample:
    """The same ravine with Adam."""
    return _polynomial(seed, lambda model, rate: Adam(model.parameters(), lr=0.1))
