"""Cliffs, which the lecture names and leaves for later: where many factors are multiplied, the loss has a wall."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sample_runs.data import ROWS, Data
from sample_runs.training import Sample


class Recurrence(nn.Module):
    """Remember an input for `length` steps: `h <- w h` in each unit, so that the output is `w^length x`."""

    def __init__(self, units: int, length: int):
        super().__init__()
        self.length = length
        self.weight = nn.Parameter(0.9 + 0.01 * torch.rand(units))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(self.length):
            h = self.weight * h
        return h


def _memory(seed: int, clip: float | None) -> Sample:
    """Below `w = 1` the output is nearly 0 and the gradient small; above it both explode."""
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(seed))
    data = Data(x, x, f"{ROWS} rows of 4 standard normal inputs, to be put out again after 50 steps; seed {seed}")
    model = Recurrence(4, length=50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Sample(model, optimizer, F.mse_loss, data, 300, clip=clip, every=1, config={"clip": clip})


def cliff_recurrent(seed: int) -> Sample:
    """The steps that suit the flat part carry the weights past 1, where one gradient throws them away."""
    return _memory(seed, None)


def cliff_clipped(seed: int) -> Sample:
    """The same with the gradient's norm clipped at 0.1."""
    return _memory(seed, 0.1)
