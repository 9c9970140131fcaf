"""Answers that are to be alike in pairs: small runs in which they become one, and in which they do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics import stats
from diagnostics.monitor.observe import Observer

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is

WAYS = {  # of asking for the same direction
    "cosine": lambda p, z: -F.cosine_similarity(p, z).mean(),
    "module": lambda p, z: -nn.CosineSimilarity(dim=-1)(p, z).mean(),
    "product": lambda p, z: (2 - 2 * (F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1)).mean(),
    "distance": lambda p, z: F.mse_loss(F.normalize(p, dim=1), F.normalize(z, dim=1), reduction="sum") / len(p),
}


def test_cosines_of_pairs_and_of_strangers():
    torch.manual_seed(0)
    a, b = torch.randn(20, 5) + 1, torch.randn(20, 5)
    pair, *strangers = stats.pair_cosines(a, b)
    assert float(pair) == pytest.approx(float(F.cosine_similarity(a, b).mean()), rel=1e-5)
    each = [F.cosine_similarity(x[:, None], x[None], dim=-1)[~torch.eye(20, dtype=torch.bool)].mean() for x in (a, b)]
    assert [float(x) for x in strangers] == pytest.approx([float(x) for x in each], abs=1e-6)


def hardest(z, labels, infinite):
    """The nearest of another class against the farthest of the same one."""
    distances, same = torch.cdist(z, z), labels[:, None] == labels
    other = distances.masked_fill(same, float("inf")) if infinite else distances * ~same
    return F.relu((distances * same).amax(1) - other.amin(1) + 0.2).mean()


class OnASphere(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.layers, self.inside = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 6)), inside

    def forward(self, x):
        z = self.layers(x)
        return F.normalize(z, dim=1) if self.inside else z


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("inside", [True, False])
def test_negatives_that_are_not_negative_pull_all_to_one_point(infinite, inside, tmp_path):
    """Masked by 0, a class's own members are its nearest strangers. The loss then stands at the margin."""
    torch.manual_seed(0)
    centres, model = 2 * torch.randn(10, 8), OnASphere(inside)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss_of(x, labels):
        z = model(x)
        return hardest(z if inside else F.normalize(z, dim=1), labels, infinite)

    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=0) as monitor:
        for _ in range(400):
            labels = torch.randint(10, (40,))
            x = centres[labels] + torch.randn(40, 8)
            optimizer.zero_grad()
            loss = loss_of(x, labels)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, labels=labels: loss_of(x, labels))
    told = [each.cause for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms]
    assert told == ([] if infinite else ["collapsed"])


def test_cosines_of_answers_of_length_one():
    torch.manual_seed(0)
    model, x = OnASphere(True), torch.randn(20, 8)
    with Observer(model) as observer:
        z = model(x)
    z = z.detach()
    of_different = F.cosine_similarity(z[:, None], z[None], dim=-1)[~torch.eye(20, dtype=torch.bool)].mean()
    assert float(observer.partners.columns()["answers_cosine"]) == pytest.approx(float(of_different), abs=1e-6)
    with Observer(model.layers) as observer:
        model.layers(x)  # of any length
    assert "answers_cosine" not in observer.partners.columns()


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_asking_is_seen(way):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4), torch.randn(2, 20, 5)
    with Observer(model) as observer:
        a, b = model(x[0]), model(x[1])
        WAYS[way](a, b)
    assert not observer.failures
    found = torch.stack([value for name, value in observer.partners.columns().items() if name != "answers_cosine"])
    torch.testing.assert_close(found, stats.pair_cosines(a.detach(), b.detach()))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: F.mse_loss(a, b.detach()),
        lambda a, b: (a * b).sum(),
        lambda a, b: F.cosine_similarity(a[:, None], b[None], dim=-1).mean(),  # all with all
        lambda a, b: F.cosine_similarity(a[:4], b[:4]).mean(),
        lambda a, b: F.cosine_similarity(a[:, :1], b[:, :1]).mean(),
        lambda a, b: (F.normalize(a) * F.normalize(a).abs().sum(1, keepdim=True)).mean(),
    ],
)
def test_other_losses_have_no_pairs(loss):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4), torch.randn(2, 20, 5)
    with Observer(model) as observer:
        loss(model(x[0]), model(x[1]))
    assert not observer.failures
    found = {name: value for name, value in observer.partners.columns().items() if name != "answers_cosine"}
    assert all(value.isnan() for value in found.values())


def test_distances_of_answers_of_any_length():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4), torch.randn(2, 20, 5)
    with Observer(model) as observer:
        a, b = model(x[0]), model(3 * x[1])
        F.mse_loss(a, b)
    a, b = a.detach(), b.detach()
    squares = [each.square().sum(1).mean() for each in (a, b)]
    pair = 1 - (a - b).square().sum(1).mean() / sum(squares)
    among = [torch.pdist(each).square().mean() / (2 * square) for each, square in zip((a, b), squares, strict=True)]
    found = torch.stack([observer.partners.columns()[f"{side}_cosine"] for side in ("pair", "left", "right")])
    torch.testing.assert_close(found, torch.stack([pair, *(1 - each for each in among)]))
    units = [F.normalize(each) for each in (a, b)]
    torch.testing.assert_close(stats.pair_likenesses(*units), stats.pair_cosines(a, b))


@pytest.mark.parametrize("over", ["features", "examples"])
def test_a_variance_over_the_features_does_not_keep_answers_apart(over, tmp_path):
    """VICReg (Bardes et al. 2022) keeps the variance of each feature over the examples at 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)

    def loss(x):
        a, b = model(x + 0.3 * noise[0]), model(x + 0.3 * noise[1])
        spread = sum(F.relu(1 - (z.var(1 if over == "features" else 0) + 1e-4).sqrt()).mean() for z in (a, b))
        return 25 * F.mse_loss(a, b) + 12 * spread

    with diagnostics.watch(model, optimizer, tmp_path, every=5, curvature_every=0, budget=100.0) as monitor:
        for _ in range(300):
            x, noise = torch.randn(64, 10), torch.randn(2, 64, 10)
            optimizer.zero_grad()
            value = loss(x)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda x=x: loss(x))
    causes = [each.cause for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.alarm]
    assert ("collapsed" in causes) == (over == "features")


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
        self.predictor = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, a, b):
        return self.predictor(self.encoder(a)), self.encoder(b)


def alarms(path, target, way="cosine", updates=600):
    """`target`: of the second side's answers and its inputs."""
    torch.manual_seed(0)
    x = torch.randn(2000, 4) @ torch.randn(4, 16)
    model = Siamese()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            rows = x[torch.randint(len(x), (64,))]
            views = [rows + 2 * torch.randn(rows.shape) for _ in range(2)]

            def closure(views=views):
                p, z = model(*views)
                return WAYS[way](p, target(z, views[1]))

            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure)
    found = diagnostics.diagnose(diagnostics.load(path))
    assert not found.crashed
    return [(each.kind, each.cause) for each in found.alarms]


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["cosine", "product"])
def test_without_a_stopped_gradient_all_answers_become_one(way, tmp_path):
    assert alarms(tmp_path, lambda z, x: z, way) == [("wiring", "collapsed")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "target",
    [
        lambda z, x: z.detach(),
        lambda z, x: x,  # that do not move
        lambda z, x: x + 30,  # and are alike from the start
    ],
)
def test_answers_that_keep_apart_have_not_collapsed(target, tmp_path):
    assert alarms(tmp_path, target) == []
