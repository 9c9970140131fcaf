"""Inputs, targets, weights and rates of the wrong size, each beside the same loop with the right one."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_wine
from torch import nn

import diagnostics
from diagnostics.rules import _signals as signals
from diagnostics.rules import ravine
from diagnostics.run import RunWriter
from tests.test_rules_mistakes import ANY, alarms, diagnosed, network


def classified(path, model, optimizer, x, y, size, updates, curvature=True):
    """The diagnosis of a classifier trained on random batches."""
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            chosen = torch.randint(len(x), (size,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            again = (lambda chosen=chosen: F.cross_entropy(model(x[chosen]), y[chosen])) if curvature else None
            monitor.step(loss.detach(), again)
    return diagnostics.diagnose(diagnostics.load(path))


@pytest.mark.exhaustive
@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("adam", [pytest.param(True, marks=pytest.mark.exhaustive), False])
def test_inputs_scaled_down_twice(adam, scale, tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2) if adam else torch.optim.SGD(model.parameters(), 0.1)
    found = diagnosed(tmp_path / "run", model, optimizer, scale=scale)
    assert alarms(found) == ([] if scale == 1 else [("plateau", "input-scale")])


@pytest.mark.exhaustive
def test_small_numbers_without_a_bias_beside_them(tmp_path):
    """Shares of all pairs of points, which a map of them is to have too: there is no network, and nothing to scale."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=generator) + 4 * (torch.arange(100) % 4)[:, None]
    shares = (-torch.cdist(x, x).square()).exp().fill_diagonal_(0)
    shares /= shares.sum()
    points = nn.Parameter(1e-2 * torch.randn(100, 2, generator=generator))
    level = nn.Parameter(torch.ones(1))  # a vector, but no bias
    optimizer = torch.optim.SGD([{"params": [points]}, {"params": [level], "lr": 0.25}], lr=20.0, momentum=0.5)

    def loss():
        kernel = 1 / (1 + (points[:, None] - points[None]).square().sum(-1))
        return -(shares * kernel.log()).sum() + (kernel.sum() - len(x)).log() + level.square().sum()

    model = nn.ParameterDict({"points": points, "level": level})
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(300):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            monitor.step(loss().detach(), closure=loss)
    assert alarms(diagnostics.diagnose(diagnostics.load(tmp_path))) == []


@pytest.mark.parametrize("raw", [True, False])
def test_units_that_raw_inputs_killed(raw, tmp_path):
    """Of the wines' columns the largest is near 750; the second step is already too long."""
    columns, classes = load_wine(return_X_y=True)
    columns = columns if raw else (columns - columns.mean(0)) / columns.std(0)
    x, y = torch.tensor(columns, dtype=torch.float32), torch.tensor(classes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    found = classified(tmp_path / "run", model, optimizer, x, y, size=8, updates=200, curvature=False)
    assert alarms(found) == ([("dead-units", "input-scale")] if raw else [])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("norm_first", "expected"), [(False, [("dead-units", "input-scale")]), (True, [])])
def test_a_norm_behind_the_units_saves_none_of_them(norm_first, expected, tmp_path):
    columns, classes = load_wine(return_X_y=True)
    x, y = torch.tensor(columns, dtype=torch.float32), torch.tensor(classes)
    torch.manual_seed(0)
    inside = [nn.BatchNorm1d(64), nn.ReLU()] if norm_first else [nn.ReLU(), nn.BatchNorm1d(64)]
    model = nn.Sequential(nn.Linear(13, 64), *inside, nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    found = classified(tmp_path / "run", model, optimizer, x, y, size=16, updates=300, curvature=False)
    assert alarms(found) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("by", "unit", "norm", "expected"),
    [
        (255, nn.Tanh, nn.Identity, [("ravine", "uncentered-inputs")]),
        pytest.param(255, nn.ReLU, nn.Identity, [("dead-units", "uncentered-inputs")], marks=pytest.mark.exhaustive),
        pytest.param(255, nn.Tanh, lambda: nn.BatchNorm1d(64), [], marks=pytest.mark.exhaustive),
        (16, nn.Tanh, nn.Identity, []),
    ],
    ids=["tanh", "relu", "batch norm", "right"],
)
def test_inputs_many_deviations_from_zero(by, unit, norm, expected, tmp_path):
    """Pixels from 0 to 16, divided by 255 and then stretched to [-1, 1]: all are near -1."""
    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / by, dtype=torch.float32) * 2 - 1, torch.tensor(classes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), norm(), unit(), nn.Linear(64, 64), unit(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    found = classified(tmp_path / "run", model, optimizer, x, y, size=64, updates=300)
    assert alarms(found) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("centred", [False, pytest.param(True, marks=pytest.mark.by_hand)])
def test_a_linear_model_of_features_that_were_divided_but_not_centred(centred, tmp_path):
    """The mean alone makes it 570 times steeper; bias and weights have to go where it is flat by the square of that."""
    torch.manual_seed(0)
    model, deviations = nn.Linear(5, 1), torch.randn(4000, 5)
    y = deviations @ torch.tensor([[0.6], [-0.2], [-0.4], [0.2], [0.0]]) + 0.3 * torch.randn(4000, 1)
    x = deviations if centred else deviations + torch.tensor([17, 5.7, 3.2, 12.9, 8.6])
    optimizer = torch.optim.SGD(model.parameters(), lr=8e-4, momentum=0.9)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for _ in range(2500):
            chosen = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), lambda chosen=chosen: F.mse_loss(model(x[chosen]), y[chosen]))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run"))
    assert alarms(found) == ([] if centred else [("ravine", "uncentered-inputs")])


@pytest.mark.exhaustive
@pytest.mark.parametrize("times", [pytest.param(1.7, marks=pytest.mark.by_hand), 1.0])
def test_a_mean_that_was_learned_at_once_where_there_is_little_else(times, tmp_path):
    """32 noisy readings of one curve, from which the next eight are to follow: they do, but for the noise. A constant
    would do better by a quarter, 7000 times less steeply; of an error times 1.7 the mean of the answers tells."""
    torch.manual_seed(0)
    model = nn.Linear(32, 8)
    noisy = torch.linspace(-10, 10, 40) ** 3 + 5 * torch.randn(256, 40)
    x, y = noisy[:, :32], noisy[:, 32:]
    optimizer = torch.optim.SGD(model.parameters(), lr=7e-7 / times)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for _ in range(2000):
            chosen = torch.randint(len(x), (16,))
            optimizer.zero_grad()
            loss = times * F.mse_loss(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), lambda chosen=chosen: times * F.mse_loss(model(x[chosen]), y[chosen]))
    (told,) = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert (told.kind, told.cause) == ("ravine", "uncentered-inputs")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.lstm, self.head = nn.LSTM(2, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.lstm(x.unflatten(1, (4, 2)))[0][:, -1])


@pytest.mark.parametrize("raw", [True, False])
def test_raw_inputs_of_a_recurrent_layer(raw, tmp_path):
    """As of sensors that count: 2000 and a bit."""
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss_of(model, x, y):
        return F.cross_entropy(model(2000 + 50 * x if raw else x), y)

    found = diagnosed(tmp_path / "run", model, optimizer, loss_of, closure=False)
    assert alarms(found) == ([("saturated-units", "input-scale")] if raw else [])


class Forecaster(nn.Module):
    """Its state grows by the `size` of its weights a step, 60 times; `first`: of the inputs' weights."""

    def __init__(self, size, first):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.RNN(1, 64, batch_first=True), nn.Linear(64, 1)
        nn.init.normal_(self.rnn.weight_hh_l0, std=size / 8)
        nn.init.normal_(self.rnn.weight_ih_l0, std=first)

    def forward(self, x):
        return self.head(self.rnn(x[..., None])[0][:, -1])


@pytest.mark.parametrize(
    ("size", "first", "cause"),
    [
        (2.4, 0.3, "large-step"),
        pytest.param(0.0, 40.0, "initialization", marks=pytest.mark.exhaustive),
        (1.0, 0.3, None),
    ],
)
def test_recurrent_units_that_no_input_is_to_blame_for(size, first, cause, tmp_path):
    """Through time a gradient grows as the state would; clipped it does no harm."""
    model = Forecaster(size, first)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9 if cause else 0.0)
    time = torch.arange(4000) / 5
    series = torch.sin(time) + torch.sin(time * 1.7)
    windows = (series / series.std()).unfold(0, 61, 1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(120):
            batch = windows[torch.randint(len(windows), (32,))]
            optimizer.zero_grad()
            loss = F.mse_loss(model(batch[:, :60]), batch[:, 60:])
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    found = [
        each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "saturated-units"
    ]
    assert [each.cause for each in found] == ([cause] if cause else [])
    assert all("inputs" not in each.summary for each in found)


@pytest.mark.exhaustive
def test_raw_inputs_that_a_recurrent_layer_gets_along_with_hide_no_saturated_units(tmp_path):
    class Beside(Recurrent):
        def __init__(self):
            super().__init__()
            self.inside, self.both = nn.Linear(8, 32), nn.Linear(48, 4)
            nn.init.normal_(self.inside.weight, std=20)

        def forward(self, x):
            last = self.lstm(2000 + 50 * x.unflatten(1, (4, 2)))[0][:, -1]
            return self.both(torch.cat([last, torch.tanh(self.inside(x))], 1))

    model = Beside()
    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=3e-3))
    assert [(each.kind, each.layers) for each in found.alarms] == [("saturated-units", ("tanh",))]
    assert [each.layers for each in found.findings if each.severity == "info"] == [("lstm",)]


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.exhaustive), 1e5])
def test_targets_in_their_own_units(scale, tmp_path):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss_of(model, x, y):
        return F.mse_loss(model(x).squeeze(1), scale * (y + 1.0))

    found = diagnosed(tmp_path / "run", model, optimizer, loss_of)
    assert alarms(found) == ([] if scale == 1 else [("plateau", "target-scale")])


@pytest.mark.exhaustive
@pytest.mark.parametrize("deviation", [None, 1.0])
def test_standard_normal_weights(deviation, tmp_path):
    """Layers that are flat from the first update on, each less than a unit that is saturated on all data."""
    torch.manual_seed(2)
    layers = [each for _ in range(3) for each in (nn.Linear(100, 100), nn.Tanh())]
    model = nn.Sequential(nn.Linear(8, 100), nn.Tanh(), *layers, nn.Linear(100, 8))
    for layer in model[::2]:
        if deviation:
            nn.init.normal_(layer.weight, std=deviation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = diagnosed(tmp_path / "run", model, optimizer, lambda model, x, y: F.mse_loss(model(x), x))
    assert alarms(found) == ([("saturated-units", "initialization")] if deviation else [])


@pytest.mark.parametrize("rate", [0.1, 1e-5])
def test_a_rate_that_moves_nothing_where_no_curvature_tells(rate, tmp_path):
    model = network()
    found = diagnosed(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=rate), closure=False)
    assert alarms(found) == ([] if rate == 0.1 else [("lr-too-small", "learning-rate")])


def test_a_small_rate_on_labels_that_say_nothing(tmp_path):
    """There is no gradient that is more than noise: whatever the rate, nothing would be learned."""
    torch.manual_seed(3)
    model, labels = network(), torch.randint(4, (4096,))
    draw = iter(labels.split(32))

    def loss_of(model, x, y):
        return F.cross_entropy(model(torch.randn(32, 8)), next(draw))

    found = diagnosed(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=1e-5), loss_of, closure=False)
    assert alarms(found) == []


class Latch(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.lstm, self.head = nn.Embedding(7, 16), nn.LSTM(16, 48, batch_first=True), nn.Linear(48, 6)
        with torch.no_grad():
            self.lstm.bias_hh_l0[48:96] += 2.0  # open forget gates

    def forward(self, x):
        return self.head(self.lstm(self.embed(x))[0][:, -1])


@pytest.mark.exhaustive
@pytest.mark.parametrize("longer", [True, False])
def test_a_loss_that_jumps_where_longer_sequences_begin(longer, tmp_path):
    """To remember what followed the cue: each time the gradient is a thousand times the usual one of a task that is
    learned, for a few updates."""
    model = Latch()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=4e-3)
    rows = torch.arange(64)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for length in [6, 6, 10, 16, 26, 40] if longer else [6] * 6:
            for _ in range(100):
                x, at = torch.randint(1, 7, (64, length)), torch.randint(0, length // 3, (64,))
                y = x[rows, at + 1] - 1
                x[rows, at] = 0
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                monitor.step(loss.detach())
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run"))
    assert alarms(found) == []
    assert ("cliff" in [each.kind for each in found.findings]) == longer


@pytest.mark.exhaustive
@pytest.mark.parametrize("squashed", [True, False])
def test_a_loss_that_squashes_twice_is_named_before_the_units_it_saturates(squashed, tmp_path):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    nn.init.normal_(model[0].weight, std=20.0)

    def loss_of(model, x, y):
        z = model(x).squeeze(1)
        return F.binary_cross_entropy_with_logits(torch.sigmoid(z) if squashed else z, (y > 1).float())

    found = diagnosed(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.01), loss_of)
    assert alarms(found) == [("plateau", "double-softmax") if squashed else ("saturated-units", "initialization")]


@pytest.mark.parametrize(
    ("conditions", "expected"), [([1.1, 766.0], 1.1), ([300.0, 766.0], 300.0), ([1.1, 300.0, 766.0], 300.0)]
)
def test_of_two_condition_numbers_of_a_network_the_lesser_counts(conditions, expected, tmp_path):
    """Along two paths of one network it can differ a thousandfold: their mean is neither's."""
    writer = RunWriter(tmp_path / "run", {"optimizer": "SGD", "hyperparameters": [{"lr": 0.1}]})
    for step in range(1, 301):
        writer.append("scalars", step, {"loss": 1 / step, "lr": 0.1})
    for step, condition in zip((150, 200, 250), conditions, strict=False):
        writer.append("curvature", step, {"eigenvalues": [20.0], "stability": 1.0, "condition": condition})
    writer.close("finished")
    run = diagnostics.load(tmp_path / "run")
    history = signals.loss(run)
    assert ravine._condition(run, history, run.table("curvature")) == expected
