"""What a module's own parameters hold: components of a mixture, states, slots that all begin as one."""

import pytest
import torch
from torch import nn

import diagnostics
from diagnostics.monitor.components import Components

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Mixture(nn.Module):
    def __init__(self, means):
        super().__init__()
        self.means = nn.Parameter(means)
        self.log_scales = nn.Parameter(torch.zeros_like(means))
        self.logits = nn.Parameter(torch.zeros(len(means)))

    def forward(self, x):
        z = (x[:, None] - self.means) * torch.exp(-self.log_scales)
        of_each = -(0.5 * z**2 + self.log_scales).sum(-1)
        return -torch.logsumexp(self.logits.log_softmax(0) + of_each, 1).mean()


class States(nn.Module):
    """A hidden Markov model, whose transitions are a matrix of two dimensions of the number of states."""

    def __init__(self, means, stay):
        super().__init__()
        self.means = nn.Parameter(means)
        self.transition = nn.Parameter(stay * torch.eye(len(means)))

    def forward(self, x):
        of_each = -0.5 * (x[:, :, None] - self.means) ** 2  # sequences, times, states
        alpha, move = of_each[:, 0], self.transition.log_softmax(1)
        for t in range(1, x.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + move, 1) + of_each[:, t]
        return -torch.logsumexp(alpha, 1).mean()


def blobs():
    torch.manual_seed(0)
    centers = torch.tensor([[-4.0, 0.0], [4.0, 1.0], [0.0, 5.0], [1.0, -5.0]])
    return centers[torch.randint(4, (2000,))] + torch.randn(2000, 2)


def trained(model, data, path, optimizer=torch.optim.Adam, steps=120):
    made = optimizer(model.parameters(), lr=0.02)
    with diagnostics.watch(model, made, path, budget=ANY) as monitor:
        for at in range(steps):
            x = data[torch.randint(len(data), (100,), generator=torch.Generator().manual_seed(at))]
            made.zero_grad()
            loss = model(x)
            loss.backward()
            made.step()
            monitor.step(loss, closure=lambda x=x: model(x))
    return [each for each in diagnostics.diagnose(diagnostics.load(path)).findings if each.alarm]


@pytest.mark.parametrize("start", ["at 0", "at the mean", "at examples", "close"])
def test_a_mixture_whose_components_begin_alike(start, tmp_path):
    data = blobs()
    means = {
        "at 0": torch.zeros(6, 2),
        "at the mean": data.mean(0).repeat(6, 1),
        "at examples": data[:6].clone(),
        "close": data.mean(0) + 0.05 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1)),
    }[start]
    found = trained(Mixture(means), data, tmp_path)
    alike = start in ("at 0", "at the mean")
    assert [each.kind for each in found] == ["symmetry"] * alike
    if alike:
        assert found[0].evidence["distinct units"] < 3 and found[0].layers == ("means.parts",)
        assert found[0].summary.startswith("Of the 6 parts of means along its dimension of size 6 only ")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("stay", "apart", "told"), [(2.0, 0.0, True), (2.0, 1.0, False)])
def test_states_that_begin_alike(stay, apart, told, tmp_path):
    """Each stays where it is more often than it moves, which makes no two of them different."""
    torch.manual_seed(0)
    states = torch.cumsum(torch.rand(400, 12) < 0.2, 1) % 3
    data = 2.0 * states + 0.5 * torch.randn(400, 12)
    model = States(data.mean() + apart * torch.tensor([-1.0, 0.1, 1.2]), stay)
    found = trained(model, data, tmp_path)
    assert [each.kind for each in found] == ["symmetry"] * told


class Words(nn.Module):
    """Scores of words by an own matrix that begins as zeros; most words never occur."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(2, 8)
        self.scores = nn.Parameter(torch.zeros(100, 8))

    def forward(self, x):
        logits = torch.tanh(self.body(x)) @ self.scores.T
        return nn.functional.cross_entropy(logits, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())


def test_words_that_never_occur_are_no_components(tmp_path):
    assert trained(Words(), blobs(), tmp_path) == []


class Slots(nn.Module):
    """Learned slots that read an input by attention."""

    def __init__(self, spread):
        super().__init__()
        torch.manual_seed(0)
        self.slots = nn.Parameter(spread * torch.randn(5, 8))
        self.keys, self.out = nn.Linear(1, 8), nn.Linear(8, 2)

    def forward(self, x):
        keys = self.keys(x[:, :, None])
        read = torch.softmax(self.slots @ keys.transpose(1, 2), -1) @ keys
        return (self.out(read.mean(1)) - x.square()).square().mean()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("spread", "told"), [(0.0, True), (1.0, False)])
def test_slots_that_begin_as_zeros(spread, told, tmp_path):
    found = trained(Slots(spread), blobs(), tmp_path)
    assert [(each.kind, each.cause) for each in found] == [("symmetry", "zero-initialization")] * told


def test_components_are_counted():
    model = Mixture(torch.zeros(3, 2))
    own = Components(model)
    model(blobs()[:50]).backward()
    assert [(name, size, int(n)) for name, size, n in own.rows()] == [("means.parts", 3, 1)]  # not along the data's two
    with torch.no_grad():
        model.logits += torch.arange(3)
        model.log_scales += torch.arange(3)[:, None]
        assert [int(n) for *_, n in own.rows()] == [1]  # of three normal distributions at one place
        model.means[1] += 1
        assert [int(n) for *_, n in own.rows()] == [2]


@pytest.mark.parametrize("of", ["values", "gradients", "nothing"])
def test_components_that_anything_tells_apart(of):
    model = Mixture(torch.zeros(3, 2))
    if of == "values":
        model.log_scales.data[1] = 0.1
    own = Components(model)
    model(blobs()[:50]).backward()
    if of == "gradients":
        model.logits.grad[1] += 0.1
    assert len(list(own.rows())) == (of == "nothing")


def test_a_bias_of_an_average_is_no_component():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(7))

    model = Average()
    own = Components(model)
    (model.weight.sum() + model.bias.sum()).backward()
    assert list(own.rows()) == []
