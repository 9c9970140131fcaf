"""A generator whose loss is flat where its discriminator is sure, and one whose loss is steep there."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.rules._saturating_loss import saturating_loss
from diagnostics.rules._stretches import flat
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def lowers_log_of_the_rest(score: Tensor) -> Tensor:
    return torch.log(1 - torch.sigmoid(score) + 1e-8).mean()


def lowers_minus_cross_entropy(score: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(score, torch.zeros_like(score))


def raises_log(score: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.ones_like(score))


def causes(loss_of, folder, updates: int = 400) -> list[str | None]:
    """The data lie far from where the generator begins, and it is slow: the discriminator is soon sure."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    slow, fast = torch.optim.SGD(generator.parameters(), 1e-2), torch.optim.Adam(critic.parameters(), 2e-2)
    with diagnostics.watch(generator, slow, folder, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(updates):
            noise, real = torch.randn(64, 2), 8 + torch.randn(64, 2)
            fast.zero_grad()
            (raises_log(critic(real)) - lowers_minus_cross_entropy(critic(generator(noise).detach()))).backward()
            fast.step()
            slow.zero_grad()
            loss = loss_of(critic(generator(noise)))
            loss.backward()
            slow.step()
            monitor.step(loss, closure=lambda noise=noise: loss_of(critic(generator(noise))))
    return [each.cause for each in diagnostics.diagnose(diagnostics.load(folder)).alarms]


@pytest.mark.parametrize("loss_of", [lowers_log_of_the_rest, lowers_minus_cross_entropy])
@pytest.mark.every_case
def test_a_loss_that_is_flat_where_the_other_is_sure(loss_of, tmp_path):
    assert causes(loss_of, tmp_path / "run") == ["saturating-loss"]


def test_a_loss_that_is_steep_there(tmp_path):
    assert "saturating-loss" not in causes(raises_log, tmp_path / "run")


@pytest.mark.parametrize("before", [0.0, 1.0])
@pytest.mark.every_case
def test_gradients_that_were_nothing_before(before):
    """Or were long at first."""
    steps = np.arange(1, 201)
    loss = np.where(steps < 40, -0.7, -1e-5)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": np.where(steps < 40, before, 1e-6)})
    meta = {"name": "test", "status": "finished", "closure": True, "loss_path": "sigmoid -> log -> mean"}
    run = Run.from_frames(meta, {"scalars": scalars})
    stretch = flat(run)
    assert stretch is not None and stretch.first_step == 41
    assert (saturating_loss("plateau", run, stretch) is not None) == (before > 0)
