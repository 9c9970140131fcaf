"""L-BFGS, whose closures are called several times a step: right, and as people get them wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from tests.test_rules_loops import ANY, alarms, examples


def watched(path, zeroed, steps=40, parts=1):
    """`zeroed`: where gradients are. `parts`: micro-batches of a closure."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = examples()[0]
    y = torch.sin(2 * x.sum(1, keepdim=True)) + 0.1 * torch.randn(len(x), 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=6, line_search_fn="strong_wolfe")

    def closure():
        if zeroed == "inside":
            optimizer.zero_grad()
        total = 0.0
        for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
            loss = F.mse_loss(model(a), b) / parts
            loss.backward()
            total += loss.detach()
        return total

    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(steps):
            if zeroed == "outside":
                optimizer.zero_grad()
            monitor.step(optimizer.step(closure), closure=lambda: F.mse_loss(model(x), y))
    run = diagnostics.load(path)
    assert "gradients-cleared" not in set(run.table("events")["kind"])
    return diagnostics.diagnose(run)


@pytest.mark.exhaustive
@pytest.mark.parametrize("parts", [1, pytest.param(4, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(("zeroed", "expected"), [("inside", []), ("outside", [("wiring", "gradients-accumulate")])])
def test_where_gradients_are_zeroed(zeroed, expected, parts, tmp_path):
    found = watched(tmp_path, zeroed, parts=parts)
    assert alarms(found) == expected
    assert all("inside the closure" in finding.remedies[0] for finding in found.alarms)
