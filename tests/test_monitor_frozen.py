"""Frozen layers at their random start: against PyTorch's own initializations, trained weights, and in small runs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor.frozen import FEWEST_NORMAL, are_drawn, is_drawn

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
LAYERS = [
    lambda: nn.Linear(30, 20),
    lambda: nn.Conv2d(16, 32, 3),
    lambda: nn.Linear(784, 100),
    lambda: nn.Linear(64, 64),
]
STARTS = {
    "default": lambda w: None,
    "xavier uniform": nn.init.xavier_uniform_,
    "he uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "xavier normal": nn.init.xavier_normal_,
    "he normal": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "GPT": lambda w: nn.init.normal_(w, std=0.02),
    "ViT": lambda w: nn.init.trunc_normal_(w, std=0.02),
}


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.every_case
def test_a_draw_of_any_usual_initialization(start, make):
    torch.manual_seed(0)
    found = []
    for _ in range(20):
        layer = make()
        STARTS[start](layer.weight)
        found.append(is_drawn(layer.weight))
    by_moments = layer.weight.numel() >= FEWEST_NORMAL or start in ("default", "xavier uniform", "he uniform")
    assert sum(found) >= 19 if by_moments else not any(found)


def trained(model, updates, lr):
    x, y = torch.randn(512, 12), torch.randint(4, (512,))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(updates):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_weights_that_were_trained_are_none(lr):
    torch.manual_seed(0)
    for _ in range(5):
        model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 4))
        assert is_drawn(model[0].weight) and is_drawn(model[2].weight)
        trained(model, 100, lr)
        assert not (is_drawn(model[0].weight) or is_drawn(model[2].weight))


@pytest.mark.parametrize("start", ["xavier normal", "he normal", "GPT"])
@pytest.mark.exhaustive
@pytest.mark.every_case
def test_normal_draws_too_small_to_be_told_alone_are_told_together(start):
    torch.manual_seed(0)
    told = {"random": 0, "trained": 0, "other formulas": 0}
    for _ in range(20):
        layers = [nn.Linear(12, 50), nn.Linear(50, 50), nn.Linear(50, 50), nn.Linear(50, 4)]
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))
        weights = [layer.weight for layer in layers]
        for weight in weights:
            STARTS[start](weight)
        assert not any(map(is_drawn, weights)) and not are_drawn(weights[:2])
        told["random"] += are_drawn(weights)
        with torch.no_grad():
            told["other formulas"] += are_drawn([weights[0], 1.5 * weights[1], *weights[2:]])
        trained(model, 300, 1e-3)
        told["trained"] += are_drawn(weights)
    assert told["random"] >= 19 and told["trained"] == told["other formulas"] == 0


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(30, 30), torch.eye(30), torch.rand(30, 30), torch.randn(100, 100)],
    ids=["zeros", "identity", "in [0, 1)", "unit normal"],
)
def test_what_is_no_usual_draw(weight):
    assert not is_drawn(nn.Parameter(weight))


class Backbone(nn.Module):
    def __init__(self, frozen, pretrained=0):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 4)
        if pretrained:
            trained(nn.Sequential(self.base, nn.Linear(64, 4)), pretrained, 1e-3)
        self.base.requires_grad_(not frozen)

    def forward(self, x):
        return self.head(self.base(x))


class Follows(Backbone):
    """A target network that is a moving average."""

    def __init__(self):
        super().__init__(frozen=False)
        self.target = copy.deepcopy(self.base).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for target, p in zip(self.target.parameters(), self.base.parameters(), strict=True):
                target.data.lerp_(p.data, 0.01)
        return super().forward(x) + 0 * self.target(x).sum()


class Normal(Backbone):
    """As torchvision's, which are initialized from a normal law."""

    def __init__(self):
        super().__init__(True)
        for layer in (self.base[0], self.base[2]):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class Filtered(Backbone):
    """Behind filters that are fixed on purpose, which no initialization would draw."""

    def __init__(self):
        super().__init__(True)
        self.filters = nn.Linear(12, 200, bias=False).requires_grad_(False)
        waves = torch.linspace(0.1, 3, 200)[:, None] * torch.arange(12)
        self.filters.weight.data, self.mix = waves.cos(), nn.Linear(200, 12)

    def forward(self, x):
        return super().forward(self.mix(self.filters(x)))


@pytest.mark.parametrize(
    ("make", "frozen"),
    [
        (lambda: Backbone(True), ["base.0.weight", "base.2.weight"]),
        (Normal, ["base.0.weight", "base.2.weight"]),
        (lambda: Backbone(True, pretrained=100), []),
        (lambda: Backbone(False), []),
        (Follows, []),
        (Filtered, ["base.0.weight", "base.2.weight"]),
    ],
    ids=["at random", "normal", "pretrained", "trained", "moving average", "fixed filters"],
)
@pytest.mark.every_case
def test_a_backbone_whose_weights_were_not_loaded(make, frozen, tmp_path):
    model = make()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3)
    x, y = torch.randn(256, 12), torch.randint(4, (256,))
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(120):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.cross_entropy(model(x), y))
    run = diagnostics.load(tmp_path)
    assert run.meta["frozen_random"] == frozen
    found = [each for each in diagnostics.diagnose(run).findings if each.cause == "frozen-random"]
    assert [each.layers for each in found] == ([tuple(frozen)] if frozen else [])
