"""Whether a loss is a policy's, as policies' losses are written, and what is said of one that rises."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

import diagnostics
from diagnostics.rules import lr_unstable
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def reinforce(out, action, gain):
    return -(Categorical(logits=out[:, :4]).log_prob(action) * gain).mean()


def by_hand(out, action, gain):
    return -(F.log_softmax(out[:, :4], -1).gather(1, action[:, None])[:, 0] * gain).sum()


def actor_critic(out, action, gain):
    drawn, value = Categorical(logits=out[:, :4]), out[:, 4]
    return reinforce(out, action, gain) + 0.5 * F.mse_loss(value, 9 + gain) - 0.01 * drawn.entropy().mean()


def clipped(out, action, gain):
    drawn = Categorical(logits=out[:, :4])
    ratio = (drawn.log_prob(action) - drawn.log_prob(action).detach()).exp()
    return -torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()


def of_any_size(out, action, gain):
    drawn = Normal(out[:, 0], F.softplus(out[:, 1]))
    return -(drawn.log_prob(gain) * gain).mean()


def classes(out, action, gain):
    return F.cross_entropy(out, action, label_smoothing=0.1)


def weighed_classes(out, action, gain):
    return (F.cross_entropy(out, action, reduction="none") * gain.abs()).mean()


def numbers(out, action, gain):
    return F.mse_loss(out[:, 0], gain)


def likelihood(out, action, gain):
    return -Normal(out[:, 0], F.softplus(out[:, 1])).log_prob(gain).mean()


def labels(out, action, gain):
    p, y = torch.sigmoid(out[:, 0]), (gain > 0).float()
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def matched(out, action, gain):
    signs = torch.sign(gain)
    return -F.logsigmoid(signs * out[:, 0]).mean() + (out[:, 1] - out[:, 1].detach()).pow(2).mean()


POLICIES = [reinforce, by_hand, actor_critic, clipped, of_any_size]
OTHERS = [classes, weighed_classes, numbers, likelihood, labels, matched]


@pytest.mark.every_case
@pytest.mark.parametrize("loss_of", [*POLICIES, *OTHERS])
def test_a_policys_loss_is_known(loss_of, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 5))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(3):
            x, action, gain = torch.randn(32, 3), torch.randint(4, (32,)), torch.randn(32)
            optimizer.zero_grad()
            loss = loss_of(model(x), action, gain)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, a=action, g=gain: loss_of(model(x), a, g))
    assert diagnostics.load(tmp_path).meta["policy"] is (loss_of in POLICIES)


@pytest.mark.every_case
@pytest.mark.parametrize(("policy", "times", "told"), [(False, 30, True), (True, 30, False), (True, 1e6, True)])
def test_values_of_returns_that_grow(policy, times, told):
    """An actor-critic's loss: a policy that learns to go on for longer has larger returns."""
    steps = np.arange(1, 101)
    loss = 0.2 * times ** (steps / 100) * np.exp(np.random.default_rng(0).normal(0, 0.05, 100))
    scalars = {"step": steps, "loss": loss, "lr": np.full(100, 1e-3), "grad_norm": np.ones(100)}
    curvature = {"step": [2, 20, 40, 80], "stability": 2.0, "preconditioned": 2e4, "limit": 1e4}
    meta = {"status": "finished", "optimizer": "Adam", "hyperparameters": [{"lr": 1e-3}], "policy": policy}
    tables = {"scalars": pd.DataFrame(scalars), "curvature": pd.DataFrame(curvature)}
    run = Run.from_frames(meta, tables)
    assert bool([each for each in lr_unstable.check(run) if each.alarm]) is told
