"""An optimizer that forgets its averages in the loop, and those that keep them or begin anew now and then."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ANY, UPDATES = 100.0, 240


def found(folder, every: int | None, make=None, frozen: int | None = None, rate: float = 1e-2) -> list:
    """`every`: updates after which the first state is loaded again; `frozen`: from which on the first layer is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = (make or torch.optim.Adam)(model.parameters(), lr=rate)
    first = copy.deepcopy(optimizer.state_dict())
    with diagnostics.watch(model, optimizer, folder, budget=ANY, curvature_every=1000) as monitor:
        for update in range(UPDATES):
            if every and update % every == 0:
                optimizer.load_state_dict(copy.deepcopy(first))
            if update == frozen:
                model[0].requires_grad_(False)
            x = torch.randn(32, 4)
            y = x[:, :1] + 0.3 * torch.randn(32, 1)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    findings = diagnostics.diagnose(diagnostics.load(folder)).findings
    return [each for each in findings if each.cause == "state-lost"]


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.every_case
def test_a_state_that_is_thrown_away(every, tmp_path):
    (lost,) = found(tmp_path / "run", every)
    assert lost.evidence["steps remembered"] == every
    assert lost.alarm == (every == 1)  # of several steps each something was learned


@pytest.mark.parametrize(
    "settings",
    [
        {"every": None},
        {"every": 60},  # a stage
        {"every": None, "frozen": 5},
        {"every": 1, "make": torch.optim.SGD, "rate": 0.05},  # nothing is kept
    ],
)
@pytest.mark.every_case
def test_what_is_kept_is_not(settings, tmp_path):
    assert found(tmp_path / "run", **settings) == []


def test_stages_as_long_as_the_gaps_between_measurements(tmp_path):
    """Each measurement finds the first step of one."""
    run = tmp_path / "run"
    assert found(run, 50) == []
