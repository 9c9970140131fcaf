"""Networks of sines, against the scheme of Sitzmann et al. 2020 and what goes into their sines, computed apart."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ROWS, WIDTH = 256, 64


class Sines(nn.Module):
    """`frequency`: of the first layer. `factor`: of the angles behind it, whose weights are divided by `divided`."""

    def __init__(self, factor=30.0, divided=30.0, skip=False, answer=False):
        super().__init__()
        self.first, self.last = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 2)
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.factor, self.skip, self.answer = factor, skip, answer
        for layer in (*self.hidden, self.last):
            nn.init.uniform_(layer.weight, -math.sqrt(6 / WIDTH) / divided, math.sqrt(6 / WIDTH) / divided)
        nn.init.uniform_(self.first.weight, -0.5, 0.5)

    def forward(self, x):
        y = torch.sin(30 * self.first(x))
        for layer in self.hidden:
            y = torch.sin(self.factor * layer(y)) + (y if self.skip else 0)
        return torch.sin(50 * self.last(y)) if self.answer else self.last(y)


class Warped(nn.Module):
    """Fourier features of where points are moved to, as in a deformed scene: frequencies again are chosen."""

    def __init__(self):
        super().__init__()
        self.warp = nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
        self.last = nn.Sequential(nn.Linear(20, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, x):
        moved = torch.cat([2**k * (x + self.warp(torch.cos(x))) for k in range(5)], -1)
        return self.last(torch.cat([moved.sin(), moved.cos()], -1))


def watched(path, model, updates=3):
    torch.manual_seed(0)
    x = torch.rand(ROWS, 2) * 2 - 1
    y = torch.stack([torch.sin(5 * x[:, 0]), x[:, 0] * x[:, 1]], -1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    with diagnostics.watch(model, optimizer, path) as monitor:
        for _ in range(updates):
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x), y))
    return x, diagnostics.load(path)


def named(run):
    return [(each.cause, each.severity) for each in diagnostics.diagnose(run).findings if each.cause == "many-periods"]


def test_spreads_are_those_of_what_goes_into_hidden_sines(tmp_path):
    torch.manual_seed(1)
    model = Sines(factor=7.0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, run = watched(tmp_path / "run", model)
    model.load_state_dict(state)
    angles = []
    with torch.no_grad():
        y = torch.sin(30 * model.first(x))
        for layer in model.hidden:
            angles.append(7.0 * layer(y))
            y = torch.sin(angles[-1])
    expected = [float(angle.std(0).median()) for angle in angles]
    assert run.meta["sine_spreads"] == pytest.approx(expected, rel=0.05)  # at the first look, after one small update


def test_the_papers_scheme_has_a_spread_of_one(tmp_path):
    torch.manual_seed(1)
    _, run = watched(tmp_path / "run", Sines())
    assert len(run.meta["sine_spreads"]) == 2
    assert run.meta["sine_spreads"] == pytest.approx([1.0, 1.0], rel=0.25)
    assert not named(run)


@pytest.mark.every_case
@pytest.mark.parametrize("skip", [False, True])
def test_weights_that_were_not_divided_are_named(tmp_path, skip):
    torch.manual_seed(1)
    _, run = watched(tmp_path / "run", Sines(divided=1.0, skip=skip))
    assert named(run) == [("many-periods", "warning")]


@pytest.mark.every_case
@pytest.mark.parametrize(
    "make",
    [
        lambda: Sines(factor=1.0, divided=1.0),  # omega in the first layer alone
        lambda: Sines(answer=True),  # a wave that is the answer
        Warped,
        lambda: nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)),
    ],
)
def test_others_are_silent(tmp_path, make):
    torch.manual_seed(1)
    _, run = watched(tmp_path / "run", make())
    assert not named(run)
