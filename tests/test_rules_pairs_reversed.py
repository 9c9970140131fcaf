"""Labels of pairs the other way round, in losses of all forms, beside pairs that are chosen, scored or learned."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor.pulled import Distances

ANY = 100.0


def by_function(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    d = F.pairwise_distance(a, b)
    return (alike * d.square() + (1 - alike) * F.relu(1 - d).square()).mean()


def by_difference(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    """Of squared distances."""
    d2 = (a - b).pow(2).sum(1)
    return 0.5 * (alike * d2 + (1 - alike) * torch.clamp(1 - d2, min=0)).mean()


def by_norm(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    """In a column, as some data sets keep their labels."""
    d = nn.PairwiseDistance(keepdim=True)(a, b)
    return torch.where(alike[:, None] == 1, d, F.relu(1 - d)).mean()


LOSSES = [by_function, *(pytest.param(each, marks=pytest.mark.exhaustive) for each in (by_difference, by_norm))]


def watched(loss_of, reversed_: bool, folder):
    """Ten prototypes with noise; half of the pairs are of one of them."""
    draw = torch.Generator().manual_seed(0)
    prototypes = torch.randn(10, 20, generator=draw)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with diagnostics.watch(model, optimizer, folder, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(100):
            first = torch.randint(10, (64,), generator=draw)
            alike = torch.arange(64) % 2
            second = torch.where(alike == 1, first, (first + 1 + first % 8) % 10)
            x, y = (prototypes[each] + 0.7 * torch.randn(64, 20, generator=draw) for each in (first, second))
            label = (1 - alike if reversed_ else alike).float()
            optimizer.zero_grad()
            loss = loss_of(model(x), model(y), label)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y, label=label: loss_of(model(x), model(y), label))
    return diagnostics.load(folder)


@pytest.mark.every_case
@pytest.mark.parametrize("reversed_", [True, False])
@pytest.mark.parametrize("loss_of", LOSSES)
def test_labels_the_other_way_round(loss_of, reversed_, tmp_path):
    run = watched(loss_of, reversed_, tmp_path / "run")
    alarms = [(each.kind, each.cause) for each in diagnostics.diagnose(run).alarms]
    assert alarms == ([("wiring", "pairs-reversed")] if reversed_ else [])
    assert "measurement-failed" not in set(run.table("events")["kind"])


def apart(loss_of, count: int = 40):
    """What is found in one loss of pairs, of which every other one is alike."""
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(count, 6, generator=draw)
    alike = (torch.arange(count) % 2).float()
    b = a + (1.2 - alike)[:, None] * 0.3 * torch.randn(count, 6, generator=draw)
    with Distances() as seen:
        loss = loss_of(a.requires_grad_(), b.requires_grad_(), alike)
    return seen.apart(loss)


def test_the_distances_are_those_of_the_pairs():
    (right,), (wrong,) = apart(by_function), apart(lambda a, b, alike: by_function(a, b, 1 - alike))
    assert (right.pulled, right.others) == pytest.approx((wrong.others, wrong.pulled))
    assert right.pulled < right.others
    assert right.error > 0


def scored(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    """How alike two are to be is a number of its own for each pair."""
    return (F.pairwise_distance(a, b) - torch.linspace(0, 1, len(a))).square().mean()


def hardest(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    """The farthest of those alike, and the nearest of the others."""
    d = F.pairwise_distance(a, b)
    ours, theirs = d[alike == 1], d[alike == 0]
    return ours.topk(8).values.square().mean() + F.relu(1 - theirs.topk(8, largest=False).values).square().mean()


def triplets(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    return F.relu(F.pairwise_distance(a, b) - F.pairwise_distance(a, b.roll(1, 0)) + 1).mean()


def by_head(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    """What a difference means is learned."""
    torch.manual_seed(0)
    return F.binary_cross_entropy_with_logits(nn.Linear(6, 1)((a - b).abs())[:, 0], alike)


def regression(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    """A difference with targets, of no pairs."""
    return torch.sub(1, (a - b).square()).square().mean()


def residual(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    """Of a differential equation: a column, whose numbers have a sign."""
    return (a[:, :1] - b[:, :1]).square().mean()


def ranking(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
    return F.relu(1 - (a[:, :1] - b[:, :1])).mean() + F.softplus(b[:, 1:2] - a[:, 1:2]).mean()


@pytest.mark.parametrize("loss_of", [scored, hardest, triplets, by_head, regression, residual, ranking])
def test_pairs_of_which_nothing_is_known(loss_of):
    assert apart(loss_of) == []


@pytest.mark.parametrize("name", ["x2", "other"])
def test_pairs_that_are_given_by_name_are_no_failure(name):
    def by_name(a: Tensor, b: Tensor, alike: Tensor) -> Tensor:
        d = F.pairwise_distance(x1=a, x2=b) if name == "x2" else a.sub(other=b).norm(dim=1)
        return (alike * d.square() + (1 - alike) * F.relu(1 - d).square()).mean()

    assert apart(by_name) == []


def test_few_pairs_tell_nothing():
    assert apart(by_function, count=6) == []
