"""Plateaux: 0-1 loss, hard thresholds, logistic units with least squares, targets of other inputs, saturated units,
dead units."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sample_runs.data import Data, digits
from sample_runs.training import Sample


def _parity() -> Data:
    """Digits as even (0) or odd (1): half of each, targets (rows, 1)."""
    data = digits()
    return Data(data.x, (data.y % 2).float()[:, None], data.recipe + "; target: is the digit odd?")


def _logistic(loss: nn.Module) -> Sample:
    """The output's bias starts at -8, the prior of one positive in 3,000, although half of the rows are positive."""
    output = nn.Linear(32, 1)
    nn.init.constant_(output.bias, -8.0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), output, nn.Sigmoid())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    return Sample(model, optimizer, loss, _parity(), steps=300)


def plateau_logistic_least_squares(seed: int) -> Sample:
    """Logistic output and least squares: wrong by nearly 1 on half of the rows, with a derivative near 0."""
    return _logistic(nn.MSELoss())


def plateau_cross_entropy(seed: int) -> Sample:
    """The same network, start and step with cross-entropy, whose derivative is the error itself."""
    return _logistic(nn.BCELoss())


def _reader(loss) -> Sample:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Sample(model, optimizer, loss, digits(), steps=400, batch=128, examples=8)


def plateau_shifted_targets(seed: int) -> Sample:
    """Each digit gets the label of its neighbour in the batch: nothing can be learned from the inputs."""
    return _reader(lambda output, target: F.cross_entropy(output, target.roll(1)))


def plateau_matching_targets(seed: int) -> Sample:
    """The same with each digit's own label."""
    return _reader(F.cross_entropy)


class _Activation(nn.Module):
    """A function of torch as a module, so that it has a place in the model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


def _threshold(function) -> Sample:
    model = nn.Sequential(nn.Linear(64, 32), _Activation(function), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Sample(model, optimizer, F.cross_entropy, digits(), steps=300, batch=128)


def zero_gradient_hard_threshold(seed: int) -> Sample:
    """Hidden units that output the sign of their input: the first layer gets no gradient and keeps its start."""
    return _threshold(torch.sign)


def zero_gradient_smooth_threshold(seed: int) -> Sample:
    """The same with tanh, the smooth step."""
    return _threshold(torch.tanh)


def zero_one_loss(output: Tensor, target: Tensor) -> Tensor:
    """Share of wrong signs, as a tensor: its derivative is 0 wherever it has one. `output`, `target` (rows, 1)."""
    return (1 - torch.sign(output) * (2 * target - 1)).mean() / 2


def _sign_classifier(loss) -> Sample:
    model = nn.Linear(64, 1)
    return Sample(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, _parity(), steps=200)


def zero_gradient_zero_one_loss(seed: int) -> Sample:
    """The 0-1 loss counts mistakes; no small change of the weights changes the count."""
    return _sign_classifier(zero_one_loss)


def zero_gradient_logistic_loss(seed: int) -> Sample:
    """The logistic loss, its smooth upper bound."""
    return _sign_classifier(F.binary_cross_entropy_with_logits)


def _tanh(std: float | None, data: Data) -> Sample:
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    if std is not None:
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=std)
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Sample(model, optimizer, F.cross_entropy, data, steps=300, batch=128)


def saturated_units_large_start(seed: int) -> Sample:
    """Weights of standard deviation 10 on 64 inputs: pre-activations near 75, where tanh is flat."""
    return _tanh(10.0, digits())


def saturated_units_smaller_start(seed: int) -> Sample:
    """The same network with PyTorch's own initialization."""
    return _tanh(None, digits())


def _relu(factor: float) -> Sample:
    """Regression of the digit's value; `factor` multiplies the learning rate of the third update only."""
    data = digits()
    value = Data(data.x, data.y.float()[:, None], data.recipe + "; target: the digit's value")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    config = {"learning rate": f"0.005, times {factor:g} at update 3"}
    return Sample(model, optimizer, F.mse_loss, value, 300, factor=lambda t: factor if t == 3 else 1.0, config=config)


def dead_units_huge_step(seed: int) -> Sample:
    """One update 400 times as long as the others: most units end where no input reaches them, for good."""
    return _relu(400.0)


def dead_units_smaller_step(seed: int) -> Sample:
    """The same run without that update."""
    return _relu(1.0)
