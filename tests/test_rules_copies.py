"""Modules side by side that are copies of each other, beside those that are not: small real runs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Experts(nn.Module):
    """Three experts behind a gate. `kind`: how their weights come to be."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(1)
        middle = nn.Dropout(0.2) if kind == "dropout" else nn.Identity()
        one = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), middle, nn.Linear(16, 1))
        self.experts = nn.ModuleList([copy.deepcopy(one) for _ in range(3)])
        self.gate, self.flat = nn.Linear(8, 3), kind == "even gate"
        if kind == "apart":
            for module in self.experts.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        if kind == "shared":
            self.experts = nn.ModuleList([one] * 3)

    def forward(self, x):
        gate = self.gate(x).softmax(1)
        gate = gate.mean(1, keepdim=True).expand_as(gate) if self.flat else gate
        return (gate * torch.cat([expert(x) for expert in self.experts], 1)).sum(1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("even gate", ["copied-modules"]), ("apart", []), ("shared", []), ("dropout", []), ("gate", [])],
)
def test_experts_that_are_copies(kind, expected, tmp_path):
    """Where the gate differs from the start, so do the copies' gradients, and they come apart."""
    model = Experts(kind)
    x = torch.randn(256, 8)
    y = x[:, 0] * (x[:, 1] > 0) - x[:, 2]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for step in range(60):
            a, b = x[32 * (step % 8) :][:32], y[32 * (step % 8) :][:32]
            optimizer.zero_grad()
            loss = F.mse_loss(model(a), b)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda a=a, b=b: F.mse_loss(model(a), b))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "symmetry"]
    assert [each.cause for each in found] == expected
    if found:
        assert found[0].alarm and len(found[0].layers) == 6 and all("experts" in name for name in found[0].layers)


@pytest.mark.exhaustive
def test_layers_that_are_copied_one_behind_the_other_are_none(tmp_path):
    """As `nn.TransformerEncoder` makes them: each has another input, and another gradient."""
    torch.manual_seed(1)
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    model = nn.Sequential(block, copy.deepcopy(block), copy.deepcopy(block), nn.Linear(8, 1))
    x = torch.randn(64, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x)[:, 0], x[:, 0].sin())
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x)[:, 0], x[:, 0].sin()))
    assert diagnostics.diagnose(diagnostics.load(tmp_path)).alarms == ()
