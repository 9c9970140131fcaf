"""One parameter group that is far too slow, or all by epsilon, beside settings that are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules import _epsilon as epsilon

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def alarms(path, model, optimizer, steps=300):
    torch.manual_seed(0)
    y = torch.randint(6, (512,))
    x = torch.randn(6, 12)[y] + torch.randn(512, 12)
    draw = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(steps):
            chosen = torch.randint(len(x), (64,), generator=draw)
            a, b = x[chosen], y[chosen]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(a), b)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda a=a, b=b: F.cross_entropy(model(a), b))
    return [(finding.kind, finding.cause) for finding in diagnostics.diagnose(diagnostics.load(path)).alarms]


def network(width=4):
    """Its body shows the head but a little of what it is given, so that the head alone comes slowly and not far."""
    torch.manual_seed(1)
    body = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, width), nn.Tanh())
    return nn.ModuleDict({"body": body, "head": nn.Linear(width, 6)})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = network()

    def forward(self, x):
        return self.parts["head"](self.parts["body"](x))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("body", "expected"),
    [(1e-6, [("lr-too-small", "one-group")]), (1e-3, []), (3e-3, [])],
)
def test_a_group_that_stays_as_it_was_initialized(body, expected, tmp_path):
    model = Net()
    groups = [{"params": model.parts["body"].parameters(), "lr": body}, {"params": model.parts["head"].parameters()}]
    assert alarms(tmp_path, model, torch.optim.Adam(groups, 3e-3)) == expected


def with_norm(model):
    """Weights that a default initialization does not draw, behind norms that are as they begin."""
    for each in model.modules():
        if isinstance(each, nn.Linear):
            nn.init.orthogonal_(each.weight)
    model.parts["body"].insert(1, nn.LayerNorm(48))
    return model


def as_if_pretrained(model):
    for each in model.parts["body"].parameters():
        each.data *= 1.7
    return model


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize(("begun", "told"), [(lambda model: model, True), (with_norm, True), (as_if_pretrained, False)])
def test_a_slow_body_is_told_sooner_where_it_is_still_random(begun, told, tmp_path):
    """Of a pretrained one a rate 250 times below that of its new head may be meant."""
    model = begun(Net())
    body, head = (model.parts[name].parameters() for name in ("body", "head"))
    found = alarms(tmp_path, model, torch.optim.Adam([{"params": body, "lr": 1.2e-5}, {"params": head}], 3e-3))
    assert (("lr-too-small", "one-group") in found) == told


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("epsilon", "rate", "expected"),
    [(1.0, 3e-3, [("lr-too-small", "epsilon")]), (1.0, 1.0, []), (1e-8, 3e-3, [])],
)
def test_an_epsilon_that_outweighs_the_gradient(epsilon, rate, expected, tmp_path):
    """A rate that makes up for it is right."""
    model = Net()
    assert alarms(tmp_path, model, torch.optim.Adam(model.parameters(), rate, eps=epsilon)) == expected


@pytest.mark.parametrize(("eps", "outweighs"), [(1e-8, False), (1e-3, False), (10.0, True)])
def test_an_epsilon_is_compared_with_the_gradient_of_what_is_trained(eps, outweighs, tmp_path):
    """A frozen table has no gradient that it could be larger than."""
    model = nn.Sequential(nn.Linear(8, 500), nn.Linear(500, 1))
    model[0].requires_grad_(False)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model[1].parameters(), 1e-3, eps=eps)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    run = diagnostics.load(tmp_path)
    entries = run.table("scalars")["grad_norm"].median() / 501**0.5
    assert epsilon.over_gradient(run) == pytest.approx(eps / entries)
    assert (epsilon.over_gradient(run) > epsilon.OUTWEIGHS) == outweighs
