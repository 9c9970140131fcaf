"""Targets that are trained themselves, and go to nothing with the loss; and those that stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from tests.test_rules_loops import ANY, alarms

pytestmark = pytest.mark.exhaustive  # a minute


class Predictor(nn.Module):
    """Half of what an encoder makes of an input from the other half. `detached`: the target, whose encoder is fixed."""

    def __init__(self, detached):
        super().__init__()
        self.detached = detached
        self.scale = nn.BatchNorm1d(8, affine=not detached)
        self.predict = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, x):
        x = self.scale(x)
        return self.predict(x[:, :4]), x[:, 4:]


def examples(step):
    torch.manual_seed(step)
    x = torch.randn(64, 4)
    return torch.cat([x, 3 * torch.sin(x) + 0.1 * torch.randn(64, 4)], 1)


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.every_case
def test_a_norm_that_makes_targets_small(detached, tmp_path):
    torch.manual_seed(0)
    model = Predictor(detached)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for step in range(500):
            x = examples(step)
            optimizer.zero_grad()
            loss = F.mse_loss(*model(x))
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x: F.mse_loss(*model(x)))
    run = diagnostics.load(tmp_path)
    assert (("wiring", "shrinking-targets") in alarms(diagnostics.diagnose(run))) != detached
    assert run.table("scalars")["target_variance"].notna().any() != detached
