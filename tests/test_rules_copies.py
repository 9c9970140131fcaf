"""Modules side by side that are copies of each other, beside those that are not: small real runs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Experts(nn.Module):
    """Three experts behind a gate. `kind`: how their weights come to be."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(1)
        middle = nn.Dropout(0.2) if kind == "dropout" else nn.Identity()
        one = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), middle, nn.Linear(16, 1))
        self.experts = nn.ModuleList([copy.deepcopy(one) for _ in range(3)])
        self.gate, self.flat = nn.Linear(8, 3), kind == "even gate"
        if kind == "apart":
            for module in self.experts.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        if kind == "shared":
            self.experts = nn.ModuleList([one] * 3)

    def forward(self, x):
        gate = self.gate(x).softmax(1)
        gate = gate.mean(1, keepdim=True).expand_as(gate) if self.flat else gate
        return (gate * torch.cat([expert(x) for expert in self.experts], 1)).sum(1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("even gate", ["copied-modules"]), ("apart", []), ("shared", []), ("dropout", []), ("gate", [])],
)
def test_experts_that_are_copies(kind, expected, tmp_path):
    """Where the gate differs from the start, so do the copies' gradients, and they come apart."""
    model = Experts(kind)
    x = torch.randn(256, 8)
    y = x[:, 0] * (x[:, 1] > 0) - x[:, 2]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for step in range(60):
            a, b = x[32 * (step % 8) :][:32], y[32 * (step % 8) :][:32]
            optimizer.zero_grad()
            loss = F.mse_loss(model(a), b)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda a=a, b=b: F.mse_loss(model(a), b))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "symmetry"]
    assert [each.cause for each in found] == expected
    if found:
        assert found[0].alarm and found[0].evidence["copies"] == 3
        assert found[0].layers == tuple(f"experts.{at}.0.weight" for at in range(3))  # the last has one row


@pytest.mark.exhaustive
def test_layers_that_are_copied_one_behind_the_other_are_none(tmp_path):
    """As `nn.TransformerEncoder` makes them: each has another input, and another gradient."""
    torch.manual_seed(1)
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    model = nn.Sequential(block, copy.deepcopy(block), copy.deepcopy(block), nn.Linear(8, 1))
    x = torch.randn(64, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x)[:, 0], x[:, 0].sin())
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x)[:, 0], x[:, 0].sin()))
    assert diagnostics.diagnose(diagnostics.load(tmp_path)).alarms == ()


class Twins(nn.Module):
    """What may well be the same: biases added to one sum from zero, and a chain of identities that stay diagonal."""

    def __init__(self):
        super().__init__()
        self.one, self.bias = nn.Parameter(torch.zeros(1, 4)), nn.Parameter(torch.zeros(1, 4))
        self.chain = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        for layer in self.chain:
            nn.init.eye_(layer.weight)

    def forward(self, x):
        return torch.cat([self.chain(x), self.one + self.bias])


@pytest.mark.exhaustive
def test_tensors_that_are_alike_for_a_good_reason(tmp_path):
    model, x = Twins(), torch.eye(4)
    target = torch.cat([torch.diag(torch.tensor([2.0, 1.5, 0.7, 0.4])), torch.ones(1, 4)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - target).square().sum()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: (model(x) - target).square().sum())
    _, names, norms = diagnostics.load(tmp_path).matrix("layers", "weight_norm")
    found = dict(zip(map(str, names), norms.T, strict=True))
    assert (found["one"] == found["bias"]).all()
    assert found["chain.0.weight"] == pytest.approx(found["chain.1.weight"], rel=1e-4)
    assert "symmetry" not in [each.kind for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings]


class Factors(nn.Module):
    """Ratings as products of two tables' rows, and a table of corrections that begins at 0."""

    def __init__(self, begin):
        super().__init__()
        self.user, self.item, self.rare = nn.Embedding(100, 6), nn.Embedding(100, 6), nn.Embedding(5000, 6)
        begin(self.user.weight), begin(self.item.weight), nn.init.zeros_(self.rare.weight)

    def forward(self, users, items):
        return ((self.user(users) + self.rare(users)) * self.item(items)).sum(1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("constant", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_embeddings_whose_dimensions_all_begin_alike(constant, tmp_path):
    torch.manual_seed(0)
    model = Factors((lambda w: nn.init.constant_(w, 0.3)) if constant else (lambda w: nn.init.normal_(w, std=0.3)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ratings = torch.randn(100, 3) @ torch.randn(3, 100)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for _ in range(300):
            users, items = torch.randint(100, (2, 256))
            optimizer.zero_grad()
            loss = F.mse_loss(model(users, items), ratings[users, items])
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), lambda u=users, i=items: F.mse_loss(model(u, i), ratings[u, i]))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [(each.kind, each.cause) for each in found] == [("symmetry", "constant-initialization")] * constant
    assert all("only 1 of 6 dimensions is distinct" in each.summary for each in found)
