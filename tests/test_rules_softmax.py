"""A softmax of one number, or along the batch: as people write them, beside the same loop done right."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def diagnosed(path, model, loss_of, *, closure=True, classes=4, updates=60, features=8):
    torch.manual_seed(0)
    y = torch.randint(classes, (256,))
    x = torch.randn(classes, features)[y] + 0.5 * torch.randn(256, features)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            chosen = torch.randint(256, (32,))
            a, b = x[chosen], y[chosen]
            optimizer.zero_grad()
            loss = loss_of(model(a), b)
            loss.backward()
            optimizer.step()
            monitor.step(loss, (lambda a=a, b=b: loss_of(model(a), b)) if closure else None)
    return diagnostics.diagnose(diagnostics.load(path))


def network(outputs, *last):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, outputs), *last)


def column(y):
    return (y > 0).float()[:, None]


OF_ONE = {
    "module": (nn.Softmax(dim=1), lambda z, y: F.binary_cross_entropy(z, column(y))),
    "function": (None, lambda z, y: F.mse_loss(z.softmax(-1), column(y))),
    "cross-entropy": (None, lambda z, y: F.cross_entropy(z, column(y))),
    "log-softmax": (nn.LogSoftmax(dim=1), lambda z, y: -(z * column(y)).mean()),
}


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("name", OF_ONE)
def test_of_one_number(name, closure, tmp_path):
    last, loss = OF_ONE[name]
    found = diagnosed(tmp_path, network(1, *[last] * (last is not None)), loss, closure=closure)
    assert [(each.kind, each.cause) for each in found.alarms] == [("zero-gradient", "softmax-of-one")]


@pytest.mark.parametrize(("outputs", "loss"), [(1, "sigmoid"), (2, "softmax")])
def test_of_one_number_done_right(outputs, loss, tmp_path):
    def right(z, y):
        return (
            F.binary_cross_entropy(z.sigmoid(), column(y)) if loss == "sigmoid" else F.cross_entropy(z, (y > 0).long())
        )

    assert not diagnosed(tmp_path, network(outputs), right).alarms


class Pooled(nn.Module):
    """Weighs four parts of its input by what it makes of each."""

    def __init__(self, dim):
        super().__init__()
        torch.manual_seed(1)
        self.dim, self.score, self.out = dim, nn.Linear(2, 1), nn.Linear(2, 4)

    def forward(self, x):
        parts = x.view(-1, 4, 2)
        return self.out((parts * self.score(parts).softmax(self.dim)).sum(1))


@pytest.mark.parametrize(("dim", "expected"), [(2, [("zero-gradient", "softmax-of-one")]), (1, [])])
def test_weights_that_are_all_one(dim, expected, tmp_path):
    found = diagnosed(tmp_path, Pooled(dim), F.cross_entropy)
    assert [(each.kind, each.cause) for each in found.findings if each.kind == "zero-gradient"] == expected


def hot(y):
    return F.one_hot(y, 4).float()


ALONG = {
    "log-softmax": lambda z, y, dim: F.nll_loss(F.log_softmax(z, dim), y),
    "logarithm": lambda z, y, dim: F.nll_loss(z.softmax(dim).log(), y),
    "squared": lambda z, y, dim: F.mse_loss(z.softmax(dim), hot(y)),
    "binary": lambda z, y, dim: F.binary_cross_entropy(z.softmax(dim), hot(y)),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_along_the_batch(name, closure, dim, tmp_path):
    found = diagnosed(tmp_path, network(4), lambda z, y: ALONG[name](z, y, dim), closure=closure)
    told = [(each.kind, each.cause) for each in found.alarms]
    assert told == ([("wiring", "log-scores")] if dim == 0 else [])


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: F.nll_loss(F.log_softmax(z @ z.t() / 4, 0), torch.arange(len(z))),
        lambda z, y: F.nll_loss(F.log_softmax(z.t(), 0).t(), y),
        lambda z, y: -(hot(y) / 8 * F.log_softmax(z, 0)).sum() / 4,
    ],
    ids=["each with all others", "classes first", "a list of examples"],
)
def test_where_the_first_dimension_is_meant(loss, tmp_path):
    assert not [each for each in diagnosed(tmp_path, network(4), loss).findings if each.cause == "log-scores"]


class Asks(nn.Module):
    """Attention pooling by one question, (batch, 1, parts), whose rest can learn without it."""

    def __init__(self, dim):
        super().__init__()
        torch.manual_seed(1)
        self.dim, self.key, self.query, self.value = dim, nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(2, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        parts = x.view(-1, 4, 2)
        scores = self.query(parts[:, :1]) @ self.key(parts).transpose(1, 2)
        return self.out(torch.relu(scores.softmax(self.dim) @ self.value(parts)).squeeze(1))


@pytest.mark.parametrize("dim", [1, 2])
def test_attention_along_the_axis_of_the_one_that_asks(dim, tmp_path):
    """However well the rest learns: along the last axis there are four to weigh."""
    found = [
        each for each in diagnosed(tmp_path, Asks(dim), F.cross_entropy).findings if each.cause == "softmax-of-one"
    ]
    assert [each.alarm for each in found] == [True] * (dim == 1)
    assert all("though the last one does" in each.summary for each in found)


@pytest.mark.parametrize(
    ("normalized", "told"),
    [
        (lambda scores: scores, True),
        (lambda scores: scores.log_softmax(0), True),  # what no dim means for three dimensions
        (lambda scores: scores.softmax(-1), True),
        (lambda scores: scores.log_softmax(-1), False),
        (lambda scores: (scores.softmax(-1) + 1e-7).log(), False),
    ],
)
def test_scores_that_ctc_takes_for_log_probabilities(normalized, told, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    x, texts = torch.randn(12, 16, 6), torch.randint(1, 5, (16, 3))
    lengths, of_texts = torch.full((16,), 12), torch.full((16,), 3)

    def loss():
        return F.ctc_loss(normalized(model(x)), texts, lengths, of_texts)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with diagnostics.watch(model, optimizer, tmp_path, curvature_every=0) as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, loss)
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).alarms
    assert [each.cause for each in found] == (["log-scores"] if told else [])
