"""What is shared though it should not be: a batch norm by several places, one array by all examples."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules import wiring

ANY = 100.0
BOTH = [True, pytest.param(False, marks=pytest.mark.exhaustive)]


def causes(model, folder, batch, updates=12, lost=F.cross_entropy, closure=True):
    """Causes of the findings about the loop, with their severities."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with diagnostics.watch(model, optimizer, folder, budget=ANY, every=2) as monitor:
        for update in range(updates):
            *given, y = batch(update)

            def loss_of(given=given, y=y):
                return lost(model(*given), y)

            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=loss_of if closure else None)
    found = diagnostics.diagnose(diagnostics.load(folder))
    assert not found.crashed
    return [(each.cause, each.severity) for each in found.findings if each.kind == "wiring"]


class Places(nn.Module):
    """Three layers, whose norms are one or three."""

    def __init__(self, shared: bool, blocks: bool = False, tracked: bool = True) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(16, track_running_stats=tracked)
        norms = [norm] * 3 if shared else [nn.BatchNorm1d(16, track_running_stats=tracked) for _ in range(3)]
        layers = [nn.Linear(4 if at == 0 else 16, 16) for at in range(3)]
        parts = [(layer, norm, nn.ReLU()) for layer, norm in zip(layers, norms, strict=True)]
        whole = (nn.Sequential(*part) for part in parts) if blocks else (each for part in parts for each in part)
        self.body, self.out = nn.Sequential(*whole), nn.Linear(16, 2)

    def forward(self, x):
        return self.out(self.body(x))


class Siamese(nn.Module):
    """One encoder of two views; its norm is called by itself, or by the encoder."""

    def __init__(self, direct: bool) -> None:
        super().__init__()
        self.direct, self.layer, self.norm = direct, nn.Linear(4, 16), nn.BatchNorm1d(16)
        self.encoder = nn.Sequential(self.layer, self.norm)
        self.out = nn.Linear(16, 2)

    def forward(self, x):
        a, b = x, x + 0.1 * torch.randn_like(x)
        a, b = (self.norm(self.layer(each)) if self.direct else self.encoder(each) for each in (a, b))
        return self.out((a - b).abs())


def points(update):
    torch.manual_seed(update)
    x = 3 + torch.randn(64, 4)
    return x, (x[:, 0] > 3).long()


@pytest.mark.parametrize("closure", BOTH)
@pytest.mark.parametrize("blocks", BOTH)
def test_one_batch_norm_at_several_places(tmp_path, blocks, closure):
    torch.manual_seed(0)
    assert causes(Places(True, blocks), tmp_path, points, closure=closure) == [("shared-norm", "warning")]


@pytest.mark.by_hand
def test_what_evaluation_would_show(tmp_path):
    """The oracle: trained on, one norm for all is right in training and wrong in evaluation, three in both."""
    right = {}
    for shared in (True, False):
        torch.manual_seed(0)
        model = Places(shared)
        told = causes(model, tmp_path / str(shared), points, updates=300)
        x, y = points(10_000)
        right[shared] = [float((model.train(mode)(x).argmax(1) == y).float().mean()) for mode in (True, False)]
        assert (told == [("shared-norm", "warning")]) == shared
    assert right[True][0] > 0.9 and right[False][1] > 0.9 and right[True][1] < right[False][1] - 0.1


@pytest.mark.parametrize(
    "model",
    [lambda: Places(False), lambda: Places(True, tracked=False), lambda: Siamese(True), lambda: Siamese(False)],
    ids=["own", "no statistics", "views", "views of an encoder"],
)
def test_norms_that_are_used_as_they_should(tmp_path, model):
    torch.manual_seed(0)
    assert causes(model(), tmp_path, points) == []


# -- examples


def of_one(update, stored):
    """Batches from a memory: of one array that is written to again, or of copies."""
    generator = torch.Generator().manual_seed(update)
    buffer = torch.zeros(6)
    memory = []
    for _ in range(16):
        buffer.copy_(torch.randn(6, generator=generator))
        memory.append(buffer if stored == "alias" else buffer.clone())
    x = torch.stack(memory)
    return x, torch.randn(16, 1, generator=generator)


@pytest.mark.exhaustive
@pytest.mark.parametrize("closure", BOTH)
def test_a_memory_of_one_array(tmp_path, closure):
    told = {
        stored: causes(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)),
            tmp_path / stored,
            lambda update, stored=stored: of_one(update, stored),
            updates=20,
            lost=F.mse_loss,
            closure=closure,
        )
        for stored in ("alias", "copies")
    }
    assert told == {"alias": [("one-example", "critical")], "copies": []}


def counts(cut):
    """Of 16 channels, scaled to [0, 1]; `cut`: to integers, as where they are written into the array they came from."""
    draw = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (960,), generator=draw)
    x = torch.randn(960, 16, generator=draw) + classes[:, None] * torch.randn(16, generator=draw)
    x = (x - x.amin(0)) / (x.amax(0) - x.amin(0))
    return (x.floor() if cut else x), classes


@pytest.mark.exhaustive
@pytest.mark.parametrize(("cut", "expected"), [(True, [("one-example", "warning")]), (False, [])])
@pytest.mark.every_case
def test_numbers_that_are_cut_to_integers(cut, expected, tmp_path):
    torch.manual_seed(0)
    x, y = counts(cut)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def batch(update):
        chosen = torch.randint(960, (64,), generator=torch.Generator().manual_seed(update))
        return x[chosen], y[chosen]

    assert causes(model, tmp_path, batch, updates=200) == expected


@pytest.mark.exhaustive
def test_sparse_data_tell_something(tmp_path):
    """Nine of ten are empty, and the others' class can be seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def batch(update):
        draw = torch.Generator().manual_seed(update)
        seen = torch.rand(64, generator=draw) < 0.08
        y = torch.where(seen, torch.randint(1, 3, (64,), generator=draw), 0)
        return F.one_hot(y, 16).float() * seen[:, None], y

    assert causes(model, tmp_path, batch, updates=200) == []


@pytest.mark.exhaustive
def test_several_samples_for_one_example_are_information(tmp_path):
    """A policy gradient of one state an update: no targets."""

    def reward(scores, actions):
        chosen = scores.log_softmax(1).gather(1, actions[:, None]).squeeze(1)
        return -(chosen * (actions == 0).float()).mean()

    def group(update):
        torch.manual_seed(update)
        return torch.randn(1, 6).repeat(16, 1), torch.randint(3, (16,))

    told = causes(nn.Linear(6, 3), tmp_path, group, updates=20, lost=reward)
    assert [severity for cause, severity in told if cause == "one-example"] == ["info"]


@pytest.mark.exhaustive
def test_the_same_input_always_is_no_memory(tmp_path):
    """As a network that is fitted to one image from fixed noise; sums of it round otherwise from batch to batch."""
    torch.manual_seed(0)
    x, y = torch.randn(1, 6).double().repeat(17, 1) / 3, torch.randn(17, 1).double()
    model = nn.Linear(6, 1).double()

    def batch(update):
        return x[: 17 - update % 5], y[: 17 - update % 5]

    assert causes(model, tmp_path, batch, updates=20, lost=F.mse_loss) == []


def test_a_norm_that_places_share_explains_no_plateau(tmp_path):
    """The training is what it looks like."""
    torch.manual_seed(0)
    causes(Places(True), tmp_path, points)
    (shared,) = (each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring")
    slow = replace(shared, kind="lr-too-small", cause="learning-rate")
    assert shared.cause == "shared-norm" and not wiring.explains(shared, slow)
    assert wiring.explains(replace(shared, cause="one-example"), slow)


class Timed(nn.Module):
    """Given a time first, the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, t, x):
        return self.layer(torch.cat([t, x], 1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("width", [1, 2])
def test_a_time_that_a_batch_has_in_common(tmp_path, width):
    def timed(update):
        torch.manual_seed(update)
        x = torch.randn(16, 8 - width)
        return torch.rand(1, width).repeat(16, 1), x, x[:, :1]

    assert causes(Timed(), tmp_path, timed, updates=20, lost=F.mse_loss) == []


@pytest.mark.parametrize(
    ("momentum", "batch", "tracked", "told"),
    [
        (0.99, 6, True, True),
        (0.99, 6, False, False),
        (0.99, 512, True, False),
        (0.1, 6, True, False),
        (None, 6, True, False),
    ],
)
@pytest.mark.every_case
def test_a_batch_norm_that_remembers_the_last_batch_alone(momentum, batch, tracked, told, tmp_path):
    """Of many numbers the last batch's mean is good enough; and without running statistics none is remembered."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 16),
        nn.BatchNorm1d(16, momentum=momentum, track_running_stats=tracked),
        nn.ReLU(),
        nn.Linear(16, 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path) as monitor:
        for _ in range(60):
            x = torch.randn(batch, 4)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x.prod(1, keepdim=True))
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms if each.kind == "wiring"]
    assert [(each.cause, each.layers) for each in found] == ([("short-memory", ("1",))] if told else [])
    assert all(each.evidence["error of the mean"] == pytest.approx((0.99 / 1.01 / 6) ** 0.5) for each in found)


@pytest.mark.parametrize(("epsilon", "size", "told"), [(0.8, 0.1, True), (0.8, 10.0, False), (1e-3, 0.01, False)])
@pytest.mark.every_case
def test_an_epsilon_that_outweighs_the_variance(epsilon, size, told, tmp_path):
    """`nn.BatchNorm1d(features, 0.8)` is meant as a momentum, and leaves what is small as small as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16, epsilon), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with diagnostics.watch(model, optimizer, tmp_path) as monitor:
        for _ in range(40):
            x = size * torch.randn(64, 4)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x.prod(1, keepdim=True).sign())
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.cause == "norm-epsilon"]
    assert [(each.severity, each.layers) for each in found] == ([("critical", ("1",))] if told else [])
    for each in found:
        variance = model[0](x).detach().var(0, correction=0)
        kept = float((variance / (variance + epsilon)).median())
        assert each.evidence["variance of what it gives"] == pytest.approx(kept, rel=0.5)
