"""A training loop that does not do what it looks like: gradients that are never zeroed."""

import torch
from torch import nn
from torch.nn import functional as F

from sample_runs.data import OFFSETS, table
from sample_runs.training import Sample


def _loop(zero: bool, seed: int) -> Sample:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Sample(model, optimizer, F.mse_loss, table(OFFSETS, seed, standardized=True), steps=200, zero=zero)


def wiring_gradients_accumulate(seed: int) -> Sample:
    """Without `zero_grad` each update is made from the sum of all gradients so far: momentum 1, which never settles."""
    return _loop(False, seed)


def wiring_gradients_zeroed(seed: int) -> Sample:
    """The same loop with `zero_grad` before each backward pass."""
    return _loop(True, seed)
