"""Runs that stand where they began, each beside one that does not: flat units behind one activation module, a product
that has vanished, a saddle point at which L-BFGS makes no step, rates that are too small where there is no closure."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from tests.test_rules_steps import ANY, alarms, classes, of_all_data

pytestmark = pytest.mark.exhaustive  # a minute and a half; the rules' edges are in test_rules_frames


class OneActivation(nn.Module):
    """Its module comes after all layers, whose outputs it is applied to in turn."""

    def __init__(self, start):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((8, 32), (32, 16), (16, 1)))
        self.activation = nn.Sigmoid()
        for layer in self.layers:
            start(layer.weight)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


@pytest.mark.parametrize(
    ("start", "expected"),
    [(nn.init.xavier_normal_, []), (lambda w: nn.init.uniform_(w, 0, 4), [("saturated-units", "initialization")])],
    ids=["xavier", "all positive"],
)
def test_flat_units_of_an_activation_that_is_used_again(start, expected, tmp_path):
    torch.manual_seed(0)
    model, (x, y) = OneActivation(start), classes(512)
    target = (y < 2).float()[:, None]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    run = of_all_data(
        tmp_path, model, optimizer, lambda: F.binary_cross_entropy_with_logits(model(x.abs()), target), 200
    )
    assert alarms(run) == expected


class Product(nn.Module):
    """As many matrices as there are inputs, each chosen by its own."""

    def __init__(self, start, size=6, inputs=48):
        super().__init__()
        self.factors = nn.Parameter(start(torch.randn(inputs, 2, size, size)))
        self.read = nn.Linear(size * size, 4)

    def forward(self, x):
        product = torch.eye(self.factors.shape[-1]).expand(len(x), -1, -1)
        for at in range(len(self.factors)):
            product = product @ self.factors[at][(x[:, at % 8] > 0).long()]
        return self.read(product.flatten(1))


@pytest.mark.parametrize(
    ("start", "updates", "expected"),
    [
        (lambda noise: torch.eye(6) + 0.02 * noise, 60, []),
        (lambda noise: 0.1 * noise, 120, [("plateau", "vanishing-gradient")]),
    ],
    ids=["identity", "small"],
)
def test_a_product_that_has_vanished(start, updates, expected, tmp_path):
    torch.manual_seed(0)
    model, (x, y) = Product(start), classes(256)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    run = of_all_data(tmp_path, model, optimizer, lambda: F.cross_entropy(model(x), y), updates)
    assert alarms(run) == expected


@pytest.mark.parametrize(("size", "expected"), [(0.3, []), (1e-3, [("saddle-point", None)])])
def test_a_saddle_point_at_which_lbfgs_makes_no_step(size, expected, tmp_path):
    torch.manual_seed(0)
    factors = nn.ParameterList(size * torch.randn(12, 12) for _ in range(3))
    model, target = nn.Module(), torch.randn(12, 3) @ torch.randn(3, 12)
    model.factors = factors
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def loss_of():
        return (factors[0] @ factors[1] @ factors[2] - target).square().mean()

    def with_backward():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(60):
            monitor.step(optimizer.step(with_backward), closure=loss_of)
    run = diagnostics.load(tmp_path)
    assert alarms(run) == expected
    assert not expected or "makes no step" in diagnostics.diagnose(run).alarms[0].summary


def trained_without_closure(path, model, optimizer, steps, scheduler=None):
    x, y = classes()
    y = torch.where(torch.rand(len(y)) < 0.8, 0, y)  # so that a constant answer is worth something
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for at in range(steps):
            k = torch.arange(64) + 64 * (at % 16)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[k]), y[k])
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            monitor.step(loss)
    return diagnostics.load(path)


@pytest.mark.parametrize(("rate", "expected"), [(0.1, []), (3e-4, [("lr-too-small", "learning-rate")])])
def test_a_loss_that_falls_as_at_the_start_to_the_end(rate, expected, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    nn.init.zeros_(model.weight)  # whatever moves it moves it by more than its size
    found = alarms(trained_without_closure(tmp_path, model, torch.optim.Adagrad(model.parameters(), lr=rate), 600))
    assert found == expected


@pytest.mark.parametrize(("length", "expected"), [(60, []), (1_000_000, [("lr-too-small", "schedule")])])
def test_a_run_that_ends_in_its_warm_up_without_a_closure(length, expected, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / length))
    run = trained_without_closure(tmp_path, model, optimizer, 520, scheduler)
    assert alarms(run) == expected
    charts = [chart for finding in diagnostics.diagnose(run).alarms for chart in finding.charts]
    assert "curvature" not in {chart.table for chart in charts}  # nothing to be drawn


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("rate", "begun", "expected"), [(1e-6, 1.0, [("lr-too-small", "learning-rate")]), (1e-2, 1.0, []), (1e-6, 1.5, [])]
)
def test_a_policy_that_stays_as_random_as_it_began(rate, begun, expected, tmp_path):
    """Its loss says nothing of how far it has to go; of a pretrained one small steps may be meant."""
    torch.manual_seed(0)
    policy, best = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3)), torch.randn(6, 3)
    for each in policy.parameters():
        each.data *= begun
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    with diagnostics.watch(policy, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(300):
            state = torch.randn(64, 6)
            drawn = torch.distributions.Categorical(logits=policy(state))
            action = drawn.sample()
            reward = (action == (state @ best).argmax(1)).float()
            loss = -(drawn.log_prob(action) * (reward - reward.mean())).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    assert alarms(diagnostics.load(tmp_path)) == expected


class Highway(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)
        self.ways = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        for gate in self.gates:
            nn.init.constant_(gate.bias, bias)

    def forward(self, x):
        x = self.first(x)
        for way, gate in zip(self.ways, self.gates, strict=True):
            open_ = torch.sigmoid(gate(x))
            x = open_ * F.relu(way(x)) + (1 - open_) * x
        return self.last(x)


@pytest.mark.parametrize(("bias", "told"), [(-9.0, True), (-3.0, False)])
@pytest.mark.every_case
def test_gates_that_begin_shut(bias, told, tmp_path):
    """Srivastava et al. 2015 begin at -1 to -4; with -9 the layers between are as good as not there."""
    torch.manual_seed(0)
    model, x = Highway(bias), torch.randn(256, 8)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long()  # which no linear model tells
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = of_all_data(tmp_path, model, optimizer, lambda: F.cross_entropy(model(x), y), 120)
    assert (("saturated-units", "initialization") in alarms(run)) == told


class Sorter(nn.Module):
    """Norms behind the residual sums, as in the first transformers, which need small first steps."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 32), nn.Linear(32, 4)
        self.places = nn.Parameter(0.02 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, x):
        return self.out(self.encoder(self.embed(x) + self.places).mean(1))


@pytest.mark.parametrize(("rate", "expected"), [(0.03, [("plateau", "large-step")]), (1e-3, [])])
@pytest.mark.every_case
def test_first_updates_that_cut_the_way_of_the_gradient(rate, expected, tmp_path):
    torch.manual_seed(0)
    model = Sorter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for step in range(200):
            torch.manual_seed(step)
            x = torch.randint(20, (32, 8))
            y = (x < 5).sum(1).clamp(max=3)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.cross_entropy(model(x), y))
    assert alarms(diagnostics.load(tmp_path)) == expected
