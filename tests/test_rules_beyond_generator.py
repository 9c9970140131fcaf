"""Data where a generator's last function cannot come, beside those where it can, and a critic's states and actions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ANY = 100.0
WIDTH = 6
ENDS = {"tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "linear": nn.Identity()}


def generator(end):
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, WIDTH), ENDS[end])


def data(low, high):
    return low + (high - low) * torch.rand(32, WIDTH)


def apart(network, real, fake):
    scores = network(real), network(fake)
    return sum(F.binary_cross_entropy_with_logits(y, torch.full_like(y, 1.0 - i)) for i, y in enumerate(scores))


def at_once(network, real, fake):
    scores = network(torch.cat([real, fake]))
    return F.binary_cross_entropy_with_logits(scores, (torch.arange(64) < 32).float()[:, None])


def adversarial(folder, end, limits, loss_of, generator_every=1):
    torch.manual_seed(0)
    makes, tells = generator(end), nn.Sequential(nn.Linear(WIDTH, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    of_makes = torch.optim.Adam(makes.parameters(), 1e-3, betas=(0.5, 0.9))
    of_tells = torch.optim.Adam(tells.parameters(), 1e-3, betas=(0.5, 0.9))
    with diagnostics.watch(tells, of_tells, folder, budget=ANY, curvature_every=1000) as monitor:
        for step in range(60):
            real, noise = data(*limits), torch.randn(32, 4)
            fake = makes(noise).detach()
            of_tells.zero_grad()
            loss = loss_of(tells, real, fake)
            loss.backward()
            of_tells.step()
            if step % generator_every == 0:
                of_makes.zero_grad()
                F.softplus(-tells(makes(noise))).mean().backward()
                of_makes.step()
            monitor.step(loss, closure=lambda real=real, fake=fake: loss_of(tells, real, fake))
    return causes(folder)


def causes(folder):
    return {finding.cause for finding in diagnostics.diagnose(diagnostics.load(folder)).alarms}


@pytest.mark.parametrize("loss_of", [apart, at_once])
@pytest.mark.parametrize(
    ("end", "limits", "generator_every", "told"),
    [
        ("tanh", (-2.0, 2.0), 1, True),
        ("sigmoid", (0.0, 255.0), 5, True),
        ("sigmoid", (-1.0, 1.0), 1, True),
        ("tanh", (-1.0, 1.0), 1, False),
        ("tanh", (-1.1, 1.1), 5, False),
        ("linear", (-2.0, 2.0), 1, False),
    ],
)
def test_what_no_generator_with_such_an_end_can_make(end, limits, generator_every, told, loss_of, tmp_path):
    assert ("beyond-generator" in adversarial(tmp_path, end, limits, loss_of, generator_every)) == told


def test_actions_of_a_policy_are_no_imitations_of_states(tmp_path):
    """A critic is given actions that a tanh makes beside states of any size, and those that were tried, with noise."""
    torch.manual_seed(0)
    critic = nn.Bilinear(WIDTH, WIDTH, 1)
    actor = generator("tanh")
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    with diagnostics.watch(critic, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(60):
            states = 5 * torch.randn(32, WIDTH)
            tried = actor(states[:, :4]).detach() + 0.3 * torch.randn(32, WIDTH)
            optimizer.zero_grad()
            loss = F.mse_loss(critic(states, tried)[:, 0], -tried.square().sum(1))
            loss.backward()
            optimizer.step()
            (-critic(states, actor(states[:, :4])).mean()).backward()
            monitor.step(loss)
    assert "beyond-generator" not in causes(tmp_path)
