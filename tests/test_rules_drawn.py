"""What is drawn by chance from what weights decide: whether a gradient comes to these weights all the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Normal

import diagnostics
from diagnostics.monitor.observe import Observer

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Drawing(nn.Module):
    """An encoder that decides what is drawn, and a decoder that is given it."""

    def __init__(self, draw):
        super().__init__()
        self.encoder, self.decoder, self.draw = nn.Linear(6, 4), nn.Linear(4, 6), draw

    def forward(self, x):
        return self.decoder(self.draw(self.encoder(x)))


def straight_through(scores):
    p = torch.sigmoid(scores)
    return p + (torch.bernoulli(p) - p).detach()


LOST = {
    "a normal of tensors": lambda mean: torch.normal(mean, torch.ones_like(mean)),
    "sample": lambda mean: Normal(mean, 1.0).sample(),
    "sample, scaled": lambda mean: 2 * Normal(mean, mean.exp()).sample() + 1,
    "bits": lambda scores: Bernoulli(logits=scores).sample(),
    "bits of a tensor": lambda scores: torch.sigmoid(scores).bernoulli(),
}
KEPT = {
    "rsample": lambda mean: Normal(mean, mean.exp()).rsample(),
    "by hand": lambda mean: mean + torch.randn_like(mean),
    "straight through": straight_through,
    "beside itself": lambda mean: mean + Normal(mean, 1.0).sample(),
    "noise of its own": lambda mean: mean + torch.normal(torch.zeros(8, 4), torch.ones(8, 4)),
    "dropout": lambda mean: F.dropout(mean, 0.5),
}


@pytest.mark.parametrize(("draw", "lost"), [(d, True) for d in LOST.values()] + [(d, False) for d in KEPT.values()])
@pytest.mark.every_case
def test_what_decides_a_draw(draw, lost):
    model = Drawing(draw)
    with Observer(model, asking=True) as observer:
        model(torch.randn(8, 6))
    assert observer.draws.lost == ({id(each) for each in model.encoder.parameters()} if lost else set())
    assert not observer.failures


def test_a_draw_whose_probability_is_weighed_is_told_what_it_led_to():
    """Hard attention: where to look is drawn, and learned by what came of it."""
    model = Drawing(lambda mean: mean)

    def loss(x):
        distribution = Normal(model.encoder(x), 1.0)
        where = distribution.sample()
        error = (model.decoder(where) - x).square().mean(1)
        return (error + distribution.log_prob(where).sum(1) * error.detach()).mean()

    with Observer(model, asking=True) as observer:
        loss(torch.randn(8, 6))
    assert not observer.draws.lost


def test_a_chain_of_draws_by_the_same_weights_is_meant():
    """A restricted Boltzmann machine, by contrastive divergence."""
    weights, seen, hidden = (nn.Parameter(0.1 * torch.randn(shape)) for shape in ((4, 6), (6,), (4,)))
    model = nn.ParameterList([weights, seen, hidden])

    def energy(v):
        return -(v @ seen) - F.softplus(F.linear(v, weights, hidden)).sum(1)

    with Observer(model, asking=True) as observer:
        v = torch.bernoulli(torch.rand(8, 6))
        h = torch.bernoulli(torch.sigmoid(F.linear(v, weights, hidden)))
        fantasy = torch.bernoulli(torch.sigmoid(F.linear(h, weights.t(), seen)))
        (energy(v) - energy(fantasy)).mean()
    assert not observer.draws.lost


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.every_case
def test_a_target_that_is_drawn_beside_a_gradient_is_meant(frozen):
    """Soft actor-critic: what is drawn makes the target, and the policy is told by `rsample()`."""
    policy, critic, target = nn.Linear(6, 4), nn.Linear(4, 1), nn.Linear(4, 1).requires_grad_(not frozen)
    model = nn.ModuleList([policy, critic, target])
    with Observer(model, asking=True) as observer:
        x = torch.randn(8, 6)
        aim = target(Normal(policy(x), 1.0).sample()).detach()
        (critic(torch.randn(8, 4)) - aim).square().mean() - critic(Normal(policy(x), 1.0).rsample()).mean()
    assert not observer.draws.lost


def test_what_is_drawn_for_a_target_or_a_picture_alone_is_no_part_of_the_loss():
    model = Drawing(LOST["sample"])
    with Observer(model, asking=True) as observer:
        x = torch.randn(8, 6)
        aim = model(x).detach()
        loss = (model.decoder(torch.randn(8, 4)) - aim).square().mean()
    assert observer.draws.lost
    observer.draws.ended(loss)
    assert not observer.draws.lost


def test_two_that_draw_for_each_other_are_meant():
    """Wake and sleep: each is trained on what the other draws (Hinton et al. 1995)."""
    recognition, generator = nn.Linear(6, 4), nn.Linear(4, 6)
    model = nn.ModuleList([recognition, generator])

    with Observer(model, asking=True) as observer:
        x = torch.bernoulli(torch.rand(8, 6))
        wake = F.binary_cross_entropy_with_logits(generator(torch.bernoulli(recognition(x).sigmoid())), x)
        dream = torch.bernoulli(generator(hidden := torch.bernoulli(torch.rand(8, 4))).sigmoid())
        wake + F.binary_cross_entropy_with_logits(recognition(dream), hidden)
    assert not observer.draws.lost


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.every_case
def test_an_encoder_that_only_the_prior_trains_is_told(lost, tmp_path):
    torch.manual_seed(0)
    model = Drawing(LOST["sample"] if lost else KEPT["rsample"])
    optimizer, x = torch.optim.Adam(model.parameters(), 1e-2), 2 * torch.randn(64, 6)

    def loss():
        return (model(x) - x).square().sum(1).mean() + 0.1 * model.encoder(x).square().sum(1).mean()

    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, closure=loss)
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).findings
    assert ("drawn-without-gradient" in {each.cause for each in found if each.alarm}) == lost
