"""Runs with nothing wrong: what the alarms must stay silent on."""

import torch
from torch import nn
from torch.nn import functional as F

from sample_runs.data import Data, digits
from sample_runs.training import Sample


def healthy_mlp(seed: int) -> Sample:
    """A small network on digits, mini-batches, plain gradient descent."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return Sample(model, torch.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, digits(), steps=600, batch=64)


def healthy_cnn(seed: int) -> Sample:
    """A convolutional network with batch normalization on digits, with momentum."""
    data = digits()
    images = Data(data.x.reshape(-1, 1, 8, 8), data.y, data.recipe)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 4 * 4, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Sample(model, optimizer, F.cross_entropy, images, steps=400, batch=64, examples=8)
