"""What another sign hides: a saddle point under batch noise, heads that are copies, inputs behind dead units."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules.cliff import explains
from tests.test_rules import finding

pytestmark = pytest.mark.exhaustive

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Factors(nn.Module):
    """Ratings: a bias a user and an item, and the scalar product of their factors."""

    def __init__(self, users: int, items: int, size: float):
        super().__init__()
        self.user, self.item = nn.Embedding(users, 6), nn.Embedding(items, 6)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for factors in (self.user, self.item):
            nn.init.normal_(factors.weight, std=size)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, u, i):
        return (self.user(u) * self.item(i)).sum(1) + self.user_bias(u)[:, 0] + self.item_bias(i)[:, 0]


def trained(path, model, optimizer, batches, loss_of):
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(model, *batch)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda batch=batch: loss_of(model, *batch))
    return [each for each in diagnostics.diagnose(diagnostics.load(path)).findings if each.alarm]


@pytest.mark.parametrize("size", [1e-5, 0.3])
def test_factors_that_leave_a_saddle_point_while_biases_jump_with_the_noise(size, tmp_path):
    """The updates, nearly all noise of the biases, curve upwards; the factors grow as the negative eigenvalue says."""
    torch.manual_seed(0)
    taste = torch.randn(80, 3) @ torch.randn(3, 60) / 3**0.5
    u, i = torch.randint(80, (60000,)), torch.randint(60, (60000,))
    r = taste[u, i] + 0.2 * torch.randn(60000)
    model = Factors(80, 60, size)
    batches = ((u[k], i[k], r[k]) for _ in range(40) for k in torch.randperm(60000).split(2000))
    loss_of = lambda model, u, i, r: F.mse_loss(model(u, i), r)  # noqa: E731
    found = trained(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.5), batches, loss_of)
    assert [each.kind for each in found] == (["saddle-point"] if size < 0.1 else [])


class Recall(nn.Module):
    """The tokens one and two places back. `copied`: every head is made from the first."""

    def __init__(self, copied: bool):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.place = nn.Embedding(8, 16), nn.Embedding(8, 16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 16)
        with torch.no_grad():
            for layer in (self.q, self.k, self.v) if copied else ():
                layer.weight.copy_(layer.weight[:4].repeat(4, 1))
                layer.bias.copy_(layer.bias[:4].repeat(4))
            if copied:
                self.out.weight.copy_(self.out.weight[:, :4].repeat(1, 4))

    def forward(self, tokens):
        h = self.token(tokens) + self.place.weight
        q, k, v = (layer(h).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(h + self.out(mixed)).unflatten(-1, (2, 8))


@pytest.mark.parametrize("copied", [True, False])
def test_attention_heads_that_are_copies(copied, tmp_path):
    def loss_of(model, tokens):
        scores = model(tokens)[:, 2:]
        back = torch.stack([tokens[:, 1:-1], tokens[:, :-2]], -1)
        return F.cross_entropy(scores.flatten(0, 2), back.flatten())

    model = Recall(copied)
    batches = ((torch.randint(8, (32, 8)),) for _ in range(300))
    found = trained(tmp_path, model, torch.optim.Adam(model.parameters(), lr=5e-3), batches, loss_of)
    assert [each.kind for each in found] == (["symmetry"] if copied else [])
    if copied:
        assert found[0].layers == ("v.heads",)
        assert "only 1 of 4 attention heads is distinct" in found[0].summary


@pytest.mark.parametrize("far", [200.0, 0.0])
def test_units_that_are_off_because_all_inputs_are_alike(far, tmp_path):
    """Inputs `far` deviations from zero; steps then turn off more of the units that are on for all of them."""
    torch.manual_seed(0)
    x = torch.randn(1600, 16)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()
    x = x + far if not far else 0.005 * (x + far)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    batches = ((x[k], y[k]) for _ in range(12) for k in torch.randperm(1600).split(64))
    loss_of = lambda model, x, y: F.cross_entropy(model(x), y)  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = trained(tmp_path, model, optimizer, batches, loss_of)
    causes = [(each.kind, each.cause) for each in found]
    assert all(cause != "large-step" for _, cause in causes)
    assert bool(causes) == bool(far) and all(cause == "uncentered-inputs" for _, cause in causes)


def test_a_wall_that_a_rising_rate_ran_into_is_the_rates():
    """Past the limit only with the noise of batches: before a wall a few examples' huge curvature, else the rate's."""
    wall = finding("cliff", 100)
    past = {"stability ratio": 2.4, "noise term": 1.5}
    for cause, explained in (("learning-rate", True), ("schedule", False)):
        unstable = finding("lr-unstable", 30, **past)
        assert explains(wall, type(unstable)(**{**vars(unstable), "cause": cause})) == explained
