"""Cosines that a softmax is taken of, with and without a scale: small contrastive runs, and how they may be written."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor.observe import Observer

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(2))

    def forward(self, a, b):
        return F.normalize(self.left(a), dim=-1), F.normalize(self.right(b), dim=-1)


LEARNED = nn.Parameter(torch.tensor(2.0))


def contrastive(a, b, scaled):
    scores = scaled(a @ b.T)
    target = torch.arange(len(a))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("scaled", "told"),
    [
        (lambda scores: scores * 0.07, True),
        (lambda scores: scores / 0.07, False),
        pytest.param(lambda scores: scores, False, marks=pytest.mark.exhaustive),
    ],
)
def test_cosines_multiplied_by_a_temperature(scaled, told, tmp_path):
    torch.manual_seed(0)
    concepts = torch.randn(2000, 6)
    a, b = (torch.tanh(concepts @ torch.randn(6, 12) / 2) for _ in range(2))
    model = Towers()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(60):
            chosen = torch.randint(2000, (64,))
            x, y = a[chosen], b[chosen]
            optimizer.zero_grad()
            loss = contrastive(*model(x, y), scaled)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: contrastive(*model(x, y), scaled))
    found = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert [(each.kind, each.cause) for each in found.alarms] == ([("plateau", "bounded-scores")] if told else [])
    if told:
        least = math.log1p(63 * math.exp(-0.07 * 64 / 63))
        assert found.alarms[0].evidence["least cross-entropy"] == pytest.approx(least, rel=1e-3)
        assert least < loss.item() < math.log(64)  # as no answer can be better


@pytest.mark.parametrize(
    ("scores", "most"),
    [
        (lambda a, b: a @ b.T * 0.5, 0.5),
        (lambda a, b: 4 * torch.mm(a, b.t()), 4.0),
        (lambda a, b: (a @ b.T).div_(-0.25), 4.0),
        (lambda a, b: F.linear(a, b) / torch.tensor([0.1]), 10.0),
        (lambda a, b: F.cosine_similarity(a[:, None], b[None], dim=-1), 1.0),
        (lambda a, b: torch.bmm(a[None], b.T[None])[0], 1.0),
        (lambda a, b: a @ b.T * LEARNED, None),  # learned
        (lambda a, b: a @ (2 * b).T, None),
        (lambda a, b: a @ b.T - 0.2 * torch.eye(len(a)), None),  # a margin: another range
        (lambda a, b: F.linear(a, b, torch.ones(len(a))), None),
        (lambda a, b: 0 * (a @ b.T), 0.0),
        (lambda a, b: (a @ b.T * 0.1).masked_fill(torch.eye(5, dtype=torch.bool), -math.inf), 0.1),
        (lambda a, b: (a @ b.T).masked_fill_(torch.eye(5, dtype=torch.bool), value=-1e9) / 2, 0.5),
        (lambda a, b: (a @ b.T).fill_diagonal_(-1e9), 1.0),
        (lambda a, b: (a @ b.T).masked_fill(torch.eye(5, dtype=torch.bool), 9.0), None),
        (lambda a, b: torch.cat([(a * b).sum(1, keepdim=True), a @ b.T], 1)[:, 1:], None),  # no product that is known
        (lambda a, b: torch.cat([0.5 * (a @ b.T)[:, :1], (a @ b.T)[:, 1:]], dim=1) * 0.1, 0.1),
    ],
)
def test_the_largest_score_there_can_be(scores, most):
    torch.manual_seed(0)
    model, x = Towers(), torch.randn(5, 12)
    with Observer(model, asking=True) as observer:
        F.cross_entropy(scores(*model(x, x)), torch.arange(5))
    assert not observer.failures
    found = [(float(bound), classes) for bound, classes in observer.losses.cosines.given if math.isfinite(bound)]
    assert found == ([] if most is None else [(pytest.approx(most), 5)])


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda x: F.normalize(x.double()), 1.0),
        (lambda x: F.normalize(x).bfloat16(), 1.0),
        (lambda x: F.normalize(x.to(torch.complex64)), None),
        (lambda x: x.long(), None),
        (lambda x: F.normalize(x).to_sparse(), None),
        (lambda x: x[:, :0], None),
    ],
)
def test_products_of_any_numbers_are_followed_or_let_be(make, most):
    """As a graph's sparse adjacency or an equalizer's complex weights: none may stop what else is seen."""
    torch.manual_seed(0)
    model, x = Towers(), torch.randn(5, 12)
    with Observer(model, asking=True) as observer:
        made = make(x)
        scores = made @ made.to_dense().T
        F.cross_entropy(scores.real.float() if most is None else scores, torch.arange(5))
    assert not observer.failures
    found = [float(bound) for bound, _ in observer.losses.cosines.given if math.isfinite(bound)]
    assert found == ([] if most is None else [1.0])


SQUARE = nn.init.orthogonal_(torch.empty(16, 16, requires_grad=True))  # its columns have length 1 as well
TABLE = F.normalize(torch.randn(16, 12), dim=0)  # data that come so, as scikit-learn's diabetes


@pytest.mark.parametrize(
    ("made", "across"),
    [
        (lambda z: F.normalize(z, dim=0), True),
        (lambda z: F.normalize(z, p=2, dim=-2), True),
        (lambda z: torch.cat([F.normalize(z[:8], dim=0), F.normalize(z[8:], dim=0)]), True),
        (lambda z: z / z.norm(dim=0, keepdim=True), True),
        (lambda z: F.normalize(z, dim=1), False),
        (lambda z: z / z.norm(dim=1, keepdim=True), False),
        (lambda z: F.normalize(F.normalize(z, dim=0), dim=1), False),  # features weighed alike, as after a batch norm
        (lambda z: F.batch_norm(z, None, None, training=True), False),
        (lambda z: F.batch_norm(z, None, None, training=True) / 4, False),
        (lambda z: SQUARE, False),
        (lambda z: F.linear(TABLE, z[:8, :1].repeat(1, 12)), False),
        (lambda z: F.normalize(z.T, dim=0).T, False),
    ],
)
@pytest.mark.parametrize(
    "scaled",
    [lambda s: s * LEARNED.exp(), lambda s: s.masked_fill(torch.eye(16, dtype=torch.bool), -1e9) / 0.5],
    ids=["learned", "not with itself"],
)
def test_vectors_made_length_one_along_the_batch(made, across, scaled):
    torch.manual_seed(0)
    model, x = Towers(), torch.randn(16, 12)
    with Observer(model, asking=True) as observer:
        z = made(model.left(x))
        F.cross_entropy(scaled(z @ z.T), torch.arange(16))
    assert not observer.failures
    assert observer.losses.sideways.told == across


def test_weights_whose_columns_are_the_vectors():
    """Prototypes, a column a class."""
    torch.manual_seed(0)
    model, x, prototypes = Towers(), torch.randn(16, 12), nn.Parameter(torch.randn(8, 16))
    with Observer(model, asking=True) as observer:
        F.cross_entropy(F.normalize(model.left(x), dim=1) @ F.normalize(prototypes, dim=0), torch.arange(16))
        F.cross_entropy((F.normalize(prototypes, dim=0).T @ F.normalize(model.left(x), dim=1).T).T, torch.arange(16))
    assert not observer.failures
    assert not observer.losses.sideways.told
