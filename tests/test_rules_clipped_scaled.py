"""Clipping under a GradScaler: before it has unscaled the gradients, and after."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.run import Run

SCALE, UPDATES = 1024.0, 40


def train(path: Path, *, unscale: bool, most: float = 1.0, kind=torch.optim.SGD, every: int = 2000, scale=SCALE) -> Run:
    """`every`: updates, after which the scaler doubles its scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = kind(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=every)
    with diagnostics.watch(model, optimizer, path, every=1, curvature_every=0, budget=100.0) as monitor:
        for _ in range(UPDATES):
            x = torch.randn(32, 8)
            y = 3 * x[:, :3].argmax(1) // 3
            optimizer.zero_grad()
            loss = 10 * F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), most)
            scaler.step(optimizer)
            scaler.update()
            monitor.step(loss, closure=lambda x=x, y=y: 10 * F.cross_entropy(model(x), y))
    return diagnostics.load(path)


def severities(run: Run) -> list[str]:
    return [each.severity for each in diagnostics.diagnose(run).findings if each.cause == "clipped-scaled"]


@pytest.mark.parametrize(
    "how", [{}, {"every": 5}, {"every": 5, "most": 0.1234567}], ids=["a scale", "growing", "growing, any threshold"]
)
@pytest.mark.every_case
def test_a_threshold_that_meets_scaled_gradients_is_told(tmp_path, how):
    run = train(tmp_path, unscale=False, **how)
    (finding,) = [each for each in diagnostics.diagnose(run).findings if each.cause == "clipped-scaled"]
    assert finding.severity == "warning" and "unscale_" in finding.remedies[0]
    assert finding.evidence["threshold"] == pytest.approx(how.get("most", 1.0), rel=1e-3)
    scales = run.table("scalars")["loss_scale"]
    assert scales.iloc[0] == SCALE and (scales.nunique() > 1) == ("every" in how)


def test_adam_makes_steps_of_any_length_alike(tmp_path):
    assert severities(train(tmp_path, unscale=False, kind=torch.optim.Adam)) == ["info"]


@pytest.mark.parametrize("most", [1.0, 0.01, 0.003])
@pytest.mark.parametrize("every", [5, 2000])
@pytest.mark.exhaustive
def test_nothing_is_told_where_they_are_unscaled_first(tmp_path, most, every):
    """A threshold that is far too small is another thing."""
    assert not severities(train(tmp_path, unscale=True, most=most, every=every))


@pytest.mark.parametrize("most", [0.125, 0.00293], ids=["times 65536 is 8192", "times 1024 is 3.0003"])
def test_a_threshold_that_is_nearly_a_round_number_times_the_scale(tmp_path, most):
    """Is one that somebody typed, all the same."""
    scale = 65536.0 if most == 0.125 else SCALE
    assert not severities(train(tmp_path, unscale=True, most=most, scale=scale))
