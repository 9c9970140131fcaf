"""Numbers of very different sizes under one rate of Adam; their logarithms; and numbers that are where they belong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ANY, UPDATES = 100.0, 400
TRUE = torch.tensor([0.03, 2000.0])  # ohm, farad


class Circuit(nn.Module):
    """The voltage of a resistance and a capacitance in parallel, a step of current after t seconds."""

    def __init__(self, start, logarithms=False):
        super().__init__()
        start = torch.as_tensor(start)
        self.logarithms, self.elements = logarithms, nn.Parameter(start.log() if logarithms else start)

    def forward(self, t):
        r, c = self.elements.exp() if self.logarithms else self.elements.clamp_min(1e-4)
        return 100 * r * (1 - torch.exp(-t / (r * c)))


def watched(model, folder, rate=1e-3):
    torch.manual_seed(0)
    optimizer, truth = torch.optim.Adam(model.parameters(), rate), Circuit(TRUE)
    with diagnostics.watch(model, optimizer, folder, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(UPDATES):
            t = 200 * torch.rand(64)
            y = (truth(t) + 0.02 * torch.randn(64)).detach()
            optimizer.zero_grad()
            loss = F.mse_loss(model(t), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda t=t, y=y: F.mse_loss(model(t), y))
    return diagnostics.load(folder)


def causes(run):
    return [(each.kind, each.cause, each.layers) for each in diagnostics.diagnose(run).alarms]


def test_a_number_too_large_for_the_rate(tmp_path):
    run = watched(Circuit([0.01, 8000.0]), tmp_path)
    assert causes(run) == [("lr-too-small", "weight-scale", ("elements",))]
    (found,) = diagnostics.diagnose(run).alarms
    assert "elements[1] hardly moves" in found.summary


@pytest.mark.parametrize(
    "model",
    [Circuit([0.01, 8000.0], logarithms=True), Circuit([0.01, 2000.0])],
    ids=["its logarithm", "as large as it should be"],
)
@pytest.mark.every_case
def test_numbers_that_need_not_move(model, tmp_path):
    assert causes(watched(model, tmp_path, rate=0.02 if model.logarithms else 1e-3)) == []


def test_what_is_recorded_of_it(tmp_path):
    """A quadratic a_i w_i^2 / 2, whose gradients are known: the number with the largest |g| w^2."""

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, -20.0, 300.0]))

        def forward(self):
            return (torch.tensor([5.0, 1.0, 0.0]) * self.w**2).sum() / 2

    model = Bowl()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=model)
    first = diagnostics.load(tmp_path).table("layers").iloc[0]
    assert first["elastic_at"] == 1
    assert first["elasticity"] == pytest.approx(20 * 19.9, rel=1e-3)  # the gradient before the step, the number after
    assert first["elastic_size"] == pytest.approx(19.9, rel=1e-3)
