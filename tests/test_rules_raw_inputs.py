"""Columns of a table as they come, in dollars, years and seconds, each beside the same loop with standardized ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor.inputs import Inputs
from tests.test_rules_mistakes import ANY, alarms


def houses(n=1200):
    draw = np.random.default_rng(0)
    area, year, far = draw.uniform(40, 250, n), draw.integers(1900, 2024, n), draw.exponential(8, n)
    income = draw.lognormal(10.5, 0.4, n)
    price = area / 70 + (year - 1960) / 100 - 0.08 * far + np.log(income / 36000) + 0.15 * draw.normal(size=n)
    return np.c_[area, year, far, income], ((price - price.mean()) / price.std())[:, None].astype(np.float32)


def payments(n=2400):
    draw = np.random.default_rng(0)
    amount, second, age = draw.lognormal(4, 1.2, n), draw.uniform(0, 86400, n), draw.integers(18, 90, n)
    others = draw.normal(size=(n, 3))
    score = 0.8 * (np.log(amount) - 4) + np.cos(2 * np.pi * second / 86400) + others @ [0.8, -0.6, 0.4]
    return np.c_[amount, second, age, others], (score + 0.7 * draw.normal(size=n) > 0.6).astype(np.int64)


def found(path, data, optimizer, lr, raw, epochs=15):
    columns, answers = data()
    columns = columns if raw else (columns - columns.mean(0)) / columns.std(0)
    x, y = torch.tensor(columns, dtype=torch.float32), torch.tensor(answers)
    error = F.mse_loss if y.is_floating_point() else F.cross_entropy
    torch.manual_seed(0)
    outputs = 1 if y.is_floating_point() else 2
    model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, outputs))
    optimizer = optimizer(model.parameters(), lr=lr)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(epochs):
            for chosen in torch.randperm(len(x)).split(32):
                optimizer.zero_grad()
                loss = error(model(x[chosen]), y[chosen])
                loss.backward()
                optimizer.step()
                monitor.step(loss, closure=lambda chosen=chosen: error(model(x[chosen]), y[chosen]))
    return diagnostics.diagnose(diagnostics.load(path))


@pytest.mark.parametrize(("far", "crowded"), [([-9999.0], 3), ([900.0, 1100.0, 3000.0], 0), ([], 0)])
@pytest.mark.every_case
def test_only_a_code_crowds_the_others(far, crowded):
    """What is rare, large and of many sizes is what a sparse feature has to say."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator)
    for at, value in enumerate(far * 8):
        x[at, :] = value
    told = Inputs().crowded(x)
    assert told[:2] == ([3, crowded] if crowded else []) and Inputs().crowded(x.to(torch.complex64)) == []


def stations(n=1200, missing=-9999.0):
    draw = np.random.default_rng(0)
    readings = draw.normal(15, 6, (n, 6))
    answer = np.sin(readings[:, 0] / 4) + 0.1 * (readings[:, 1] - 15)
    readings[draw.random(readings.shape) < 0.06] = missing
    return readings, ((answer - answer.mean()) / answer.std())[:, None].astype(np.float32)


@pytest.mark.exhaustive
@pytest.mark.parametrize("missing", [-9999.0, pytest.param(15.0, marks=pytest.mark.by_hand)])
def test_codes_for_what_is_missing_that_are_standardized(missing, tmp_path):
    diagnosis = found(tmp_path / "run", lambda: stations(missing=missing), torch.optim.Adam, 1e-3, raw=False)
    assert alarms(diagnosis) == ([("plateau", "crowded-inputs")] if missing < 0 else [])


@pytest.mark.exhaustive
@pytest.mark.parametrize("raw", [True, pytest.param(False, marks=pytest.mark.by_hand)])
def test_answers_that_adam_never_brings_back_to_the_size_of_the_targets(raw, tmp_path):
    diagnosis = found(tmp_path / "run", payments, torch.optim.Adam, 1e-3, raw)
    assert alarms(diagnosis) == ([("plateau", "input-scale")] if raw else [])
    if raw:
        (alarm,) = diagnosis.alarms
        assert "an update of Adam" in alarm.summary and alarm.remedies[0].startswith("standardize the inputs")


@pytest.mark.exhaustive
@pytest.mark.parametrize("raw", [True, pytest.param(False, marks=pytest.mark.by_hand)])
def test_units_that_are_on_for_all_or_none(raw, tmp_path):
    """Incomes are positive and outweigh the rest: a unit's sign is that of one weight."""
    diagnosis = found(tmp_path / "run", houses, torch.optim.RMSprop, 1e-3, raw)
    assert alarms(diagnosis) == ([("plateau", "input-scale")] if raw else [])
    if raw:  # the answers stay farther from the targets than these from each other, and that is worse
        assert "explains dead-units since step" in diagnosis.alarms[0].evidence


@pytest.mark.exhaustive
@pytest.mark.parametrize("raw", [True, pytest.param(False, marks=pytest.mark.by_hand)])
def test_a_gradient_too_large_to_square_is_no_fault_of_its_own(raw, tmp_path):
    """The first step sent the loss to 1e30 and killed the units; it came back, by the last bias alone."""
    diagnosis = found(tmp_path / "run", houses, torch.optim.SGD, 0.02, raw)
    assert alarms(diagnosis) == ([("dead-units", "input-scale")] if raw else [])


class Beside(nn.Module):
    """A time goes through sines into the first layer, columns of a table into another."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.time, self.table, self.act, self.out = nn.Linear(8, 32), nn.Linear(4, 32), act, nn.Linear(32, 1)

    def forward(self, t, x):
        waves = torch.stack([(t * each).sin() for each in range(1, 9)], 1)
        return self.out(self.act(self.time(waves)) + self.act(self.table(x)))[:, 0]


@pytest.mark.parametrize(
    ("act", "raw", "told"),
    [
        (nn.ReLU(), True, [("plateau", "input-scale")]),
        (nn.Tanh(), True, [("saturated-units", "input-scale")]),
        (nn.ReLU(), False, []),
        (nn.Tanh(), False, []),
    ],
)
@pytest.mark.every_case
def test_raw_columns_of_another_layer_than_the_first(act, raw, told, tmp_path):
    torch.manual_seed(0)
    model = Beside(act)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if raw else 1e-2)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(150):
            t, x = torch.rand(64), torch.randn(64, 4)
            y = x[:, :2].mean(1) + t
            x = 100 + 30 * x if raw else x
            optimizer.zero_grad()
            loss = F.mse_loss(model(t, x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda t=t, x=x, y=y: F.mse_loss(model(t, x), y))
    run = diagnostics.load(tmp_path)
    ((layer, length, features, total, mean, deviation),) = run.meta["inputs_beside"]
    sizes = (100.0, 30.0) if raw else (0.0, 1.0)
    assert (layer, features) == ("table.weight", 4)
    assert np.allclose([length / 2, total / 4], np.hypot(*sizes), rtol=0.1)
    assert np.allclose([mean, deviation], sizes, atol=0.4 * sizes[1])
    diagnosis = diagnostics.diagnose(run)
    assert alarms(diagnosis) == told
    assert all("standardize what table is given" in each.remedies[0] for each in diagnosis.alarms)


class Joined(nn.Module):
    """Columns are put beside the features of a picture."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(34, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))

    def forward(self, image, columns):
        return self.head(torch.cat([self.picture(image), columns], 1))


@pytest.mark.parametrize(
    ("raw", "classes", "told"),
    [
        (True, False, ("dead-units", "uncentered-inputs")),
        (True, True, ("plateau", "input-scale")),
        (False, False, None),
        (False, True, None),
    ],
)
@pytest.mark.every_case
def test_a_raw_column_beside_the_features_of_a_picture(raw, classes, told, tmp_path):
    torch.manual_seed(0)
    image, area = torch.randn(1200, 16), torch.empty(1200).log_normal_(11.5, 0.8)
    age, size = torch.randn(1200), (area.log() - 11.5) / 0.8
    score = image[:, :4].sum(1) + age - size
    columns = torch.stack([area if raw else size, age], 1)
    y = (score > 0).long() if classes else score / score.std()
    model = Joined(2 if classes else 1)

    def loss_of(at):
        answer = model(image[at], columns[at])
        return F.cross_entropy(answer, y[at]) if classes else F.mse_loss(answer[:, 0], y[at])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(12):
            for at in torch.randperm(1200).split(40):
                optimizer.zero_grad()
                loss = loss_of(at)
                loss.backward()
                optimizer.step()
                monitor.step(loss, closure=lambda at=at: loss_of(at))
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).alarms
    assert [(each.kind, each.cause) for each in found[:1]] == ([told] if told else [])
    assert all("standardize what head.0 is given" in each.remedies[0] for each in found[:1])


@pytest.mark.exhaustive
@pytest.mark.parametrize("plays", [True, False])
def test_inputs_that_are_all_but_constant_hold_up_no_game(plays, tmp_path):
    """A bandit whose context says nothing: its loss is a sum of advantages, whose level tells nothing. A regression on
    the same inputs, whose targets do depend on their ripple, is held up."""
    torch.manual_seed(0)
    pay = torch.linspace(0.0, 0.9, 10)
    body, choose, value = nn.Sequential(nn.Linear(4, 32), nn.Tanh()), nn.Linear(32, 10), nn.Linear(32, 1)
    model = nn.ModuleList([body, choose, value])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def game(x, arm, reward):
        chances, worth = choose(body(x)).log_softmax(1), value(body(x))[:, 0]
        gain = (reward - worth).detach()
        return -(chances.gather(1, arm[:, None])[:, 0] * gain).mean() + 0.5 * (reward - worth).square().mean()

    def error(x, y, _):
        return F.mse_loss(value(body(x))[:, 0], y)

    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(500):
            ripple = torch.randn(32, 4)
            x = 1 + 0.001 * ripple
            arm = torch.distributions.Categorical(logits=choose(body(x))).sample()
            batch = (x, arm, pay[arm] + 0.3 * torch.randn(32)) if plays else (x, ripple[:, 0], None)
            loss_of = game if plays else error
            optimizer.zero_grad()
            loss = loss_of(*batch)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda batch=batch, loss_of=loss_of: loss_of(*batch))
    run = diagnostics.load(tmp_path)
    assert (run.table("scalars")["loss"] < 0).mean() > 0.1 or not plays
    assert (("ravine", "uncentered-inputs") in alarms(diagnostics.diagnose(run))) == (not plays)


class Denoiser(nn.Module):
    """Finds the noise in a picture, knowing the time."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 32))
        self.picture, self.hidden, self.last = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])

    def forward(self, t, x):
        h = self.time(t) + self.picture(x)
        h = h + self.hidden(F.silu(self.norms[0](h)))
        return self.last(F.silu(self.norms[1](h)))


@pytest.mark.parametrize("size", [1000.0, 1.0])
def test_a_raw_picture_drowns_out_the_time(size, tmp_path):
    torch.manual_seed(0)
    model, pictures = Denoiser(), size * torch.randn(3, 16).sigmoid()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(600):
            t, noise = torch.rand(64, 1), torch.randn(64, 16)
            x = (1 - t).sqrt() * pictures[torch.randint(3, (64,))] + t.sqrt() * noise
            code = torch.sin(t * torch.arange(1.0, 9.0))
            optimizer.zero_grad()
            loss = F.l1_loss(model(code, x), noise)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, code=code, noise=noise: F.l1_loss(model(code, x), noise))
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).alarms
    assert [(each.kind, each.cause) for each in found] == ([("plateau", "input-scale")] if size > 1 else [])
    assert not found or (found[0].layers == ("time.0.weight", "picture.weight") and "std" in found[0].remedies[0])
