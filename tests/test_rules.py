"""Rules on real watched runs whose diagnosis is known in closed form, and the precedence between findings."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import nn

import diagnostics
from diagnostics.rules import Finding, _one_alarm_a_fault
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules._remembered import Remembered
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Quadratic(nn.Module):
    """J(w) = 1/2 sum_i lambda_i w_i^2, whose Hessian is known."""

    def __init__(self, curvatures):
        super().__init__()
        self.register_buffer("curvatures", torch.tensor(curvatures))
        self.w = nn.Parameter(torch.ones(len(curvatures)))

    def forward(self):
        return 0.5 * (self.curvatures * self.w**2).sum()


def descend(path, curvatures, steps=60, optimizer=torch.optim.SGD, **settings):
    """The diagnosis of `steps` watched updates on the quadratic."""
    model = Quadratic(curvatures)
    torch.manual_seed(0)
    opt = optimizer(model.parameters(), **settings)
    with diagnostics.watch(model, opt, path, budget=ANY) as monitor:
        for _ in range(steps):
            opt.zero_grad()
            loss = model()
            loss.backward()
            opt.step()
            monitor.step(loss, closure=model)
    return diagnostics.diagnose(diagnostics.load(path))


def alarms(diagnosis):
    return [(finding.kind, finding.cause) for finding in diagnosis.alarms]


@pytest.mark.exhaustive
@pytest.mark.parametrize("contraction", [0.3, 1.0, 1.5, 1.8])
def test_rates_that_settle_are_silent(tmp_path, contraction):
    """At alpha lambda = 1.5 the loss falls fourfold a step, at 1.8 by a third: oscillation that costs nothing."""
    assert alarms(descend(tmp_path, [10.0, 8.0], lr=contraction / 10)) == []


@pytest.mark.parametrize("contraction", [2.05, 2.5, 4.0])
def test_past_the_limit_is_unstable(tmp_path, contraction):
    diagnosis = descend(tmp_path, [10.0, 1.0], lr=contraction / 10)
    assert alarms(diagnosis) == [("lr-unstable", "learning-rate")]
    assert diagnosis.alarms[0].evidence["stability ratio"] == pytest.approx(contraction / 2, rel=0.02)


def test_bouncing_just_below_the_limit_holds_the_loss_up(tmp_path):
    """alpha lambda = 1.98: the lecture's second case, (1 - 1.98)^2 = 0.96 a step."""
    assert alarms(descend(tmp_path, [10.0, 1.0], lr=0.198)) == [("lr-oscillation", "learning-rate")]


def test_heavy_ball_has_its_own_limit(tmp_path):
    """At mu = 0.9 the limit is 3.8 / lambda: a rate past 2 / lambda is fine, one past 3.8 / lambda is not."""
    assert alarms(descend(tmp_path / "inside", [10.0, 1.0], lr=0.3, momentum=0.9, steps=150)) == []
    assert alarms(descend(tmp_path / "outside", [10.0, 1.0], lr=0.42, momentum=0.9)) == [
        ("lr-unstable", "learning-rate")
    ]


def test_a_usual_momentum_is_not_blamed_for_a_short_run(tmp_path):
    """Twenty updates are as long as the memory of mu = 0.9: nothing has settled, and nothing is wrong."""
    diagnosis = descend(tmp_path, [10.0, 1.0], lr=0.002, momentum=0.9, steps=20)
    assert ("lr-oscillation", "momentum") not in alarms(diagnosis)


def test_a_rate_far_too_small_is_named_with_a_better_one(tmp_path):
    diagnosis = descend(tmp_path, [10.0, 9.0], lr=1e-4)
    assert alarms(diagnosis) == [("lr-too-small", "learning-rate")]
    assert "0.001" in diagnosis.alarms[0].remedies[0]


def test_a_ravine_pins_the_rate(tmp_path):
    diagnosis = descend(tmp_path, [1000.0, 1.0, 1.0, 1.0], lr=1e-3, steps=200)
    assert [kind for kind, _ in alarms(diagnosis)] == ["ravine"]
    assert diagnosis.alarms[0].evidence["condition number"] == pytest.approx(1000, rel=0.05)


def train(path, model, optimizer, criterion, x, y, steps=200):
    """The diagnosis of `steps` watched updates on all data."""
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: criterion(model(x), y))
    return diagnostics.diagnose(diagnostics.load(path))


def curve(rows=128):
    """White inputs, and a target that is a smooth function of them."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(2))
    y = torch.sin(x[:, :1] + x[:, 1:2]) + 0.5 * x[:, 2:3]
    return x, y - y.mean()


@pytest.mark.parametrize(
    ("activation", "expected"), [(nn.Sigmoid, [("ravine", "uncentered-activations")]), (nn.Tanh, [])]
)
def test_the_mean_of_logistic_units_pins_the_rate(tmp_path, activation, expected):
    """32 outputs near 1/2 make the steepest curvature 2 (1 + 32 / 4) = 18: half its limit is 1/18."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), activation(), nn.Linear(32, 1))
    diagnosis = train(tmp_path, model, torch.optim.SGD(model.parameters(), 1 / 18), nn.functional.mse_loss, *curve())
    assert alarms(diagnosis) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize(("bias", "expected"), [(-5.0, [("plateau", "logistic-least-squares")]), (0.0, [])])
def test_a_plateau_that_is_left_is_named_too(tmp_path, bias, expected):
    """At z = -5 the logistic's derivative is 2.7 % of its maximum; it takes a fifth of the run to get out of there."""
    torch.manual_seed(0)
    x = torch.randn(128, 2)
    y = (x[:, :1] > -1.0).float()
    model = nn.Linear(2, 1)
    nn.init.constant_(model.bias, bias)
    optimizer = torch.optim.SGD(model.parameters(), 2.0)
    diagnosis = train(tmp_path, model, optimizer, lambda z, t: nn.functional.mse_loss(torch.sigmoid(z), t), x, y)
    assert alarms(diagnosis) == expected


def test_a_rate_that_momentum_makes_large_is_not_too_small(tmp_path):
    """eta lambda / (1 - mu) = 5: the terminal velocity passes the minimum, though s is a hundredth."""
    diagnosis = descend(tmp_path, [10.0, 9.0], lr=0.005, momentum=0.99, steps=60)
    assert ("lr-too-small", "learning-rate") not in alarms(diagnosis)


class Product(nn.Module):
    """J = 1/2 (1 - abc)^2 started at a = b = c = 0.1: gradient 0.01, eigenvalues -0.2, 0.1, 0.1."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 0.1))

    def forward(self):
        return 0.5 * (1 - self.w.prod()) ** 2


def test_a_wait_at_a_saddle_point_is_told_from_a_small_rate(tmp_path):
    """da/dt = a^2 leaves at t = 1/0.1, after 100 updates at rate 0.1; the escape time is 1 / (0.1 * 0.2) = 50."""
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(90):
            optimizer.zero_grad()
            loss = model()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=model)
    assert [kind for kind, _ in alarms(diagnostics.diagnose(diagnostics.load(tmp_path)))] == ["saddle-point"]


def finding(kind, first_step=1, severity="critical", **evidence) -> Finding:
    return Finding(kind, None, severity, first_step, None, (), "", evidence, ())


def test_one_fault_gives_one_alarm_and_the_rest_is_its_evidence():
    dead = finding("dead-units", 5, **{"dead fraction": 1.0})
    kept = _one_alarm_a_fault([dead, finding("plateau", 8)], {})
    assert [each.kind for each in kept] == ["dead-units"]
    assert kept[0].evidence["explains plateau since step"] == 8


@pytest.mark.parametrize(("died", "kept"), [(50, "lr-oscillation"), (5, "dead-units")])
def test_swings_of_a_long_memory_and_the_units_that_died_of_them(died, kept):
    """Of both the earlier one is the reason."""
    dead = replace(finding("dead-units", died, **{"dead fraction": 0.8}), cause="large-step")
    swings = replace(finding("lr-oscillation", 20), cause="momentum")
    assert [each.kind for each in _one_alarm_a_fault([dead, swings], {})] == [kept]


def test_a_tenth_of_dead_units_does_not_explain_a_plateau():
    dead = finding("dead-units", 5, **{"dead fraction": 0.1})
    assert [each.kind for each in _one_alarm_a_fault([dead, finding("plateau", 8)], {})] == ["dead-units", "plateau"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss()], ids=["least squares", "cross-entropy"])
def test_the_quadratic_picture_of_a_linear_model_is_exact_for_least_squares_only(tmp_path, loss):
    """Three clusters so far apart that the cross-entropy has fallen after one update, and its Hessian with it."""
    torch.manual_seed(0)
    classes = torch.arange(90) % 3
    x = torch.eye(3)[classes] * 8 + torch.randn(90, 3)
    y = torch.eye(3)[classes] if isinstance(loss, nn.MSELoss) else classes
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if isinstance(loss, nn.MSELoss) else 0.5)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(300):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda: loss(model(x), y))
    assert quadratic.exact(diagnostics.load(tmp_path)) == isinstance(loss, nn.MSELoss)


@pytest.mark.parametrize(
    ("measured", "condition", "expected"),
    [([150], 300.0, []), ([150], 3000.0, ["ravine"]), ([120, 150], 300.0, ["ravine"]), ([120, 150], 60.0, [])],
)
def test_one_path_of_a_network_must_be_five_times_too_slow_to_tell_of_a_ravine(measured, condition, expected):
    """At three tenths of the limit a tenfold shrink along 300 times less curvature takes 690 updates: 200 were made."""
    steps = np.arange(1, 201)
    loss = 1 - 1e-3 * steps + 1e-3 * np.cos(3.0 * steps)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": 0.1})
    estimates = {"stability": 0.5, "progress": 1.0, "condition": condition, "preconditioned": 10.0}
    curvature = pd.DataFrame({"step": measured, **estimates})
    curvature["eigenvalues"] = [[10.0, 1.0, -0.1]] * len(measured)
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    run = Run.from_frames(meta, {"scalars": scalars, "curvature": curvature})
    assert [found.kind for found in diagnostics.diagnose(run).alarms] == expected


@pytest.mark.parametrize(("along", "expected"), [(np.inf, "saddle-point"), (20.0, "lr-too-small")])
def test_a_path_that_curves_downwards_where_the_loss_shows_no_more_than_rounding(along, expected):
    """A deep linear map that starts next to 0: twice as far from the saddle every thousand updates."""
    steps = np.arange(1, 1601)
    loss = 1 - 1e-6 * steps + 0.02 * np.cos(3.0 * steps)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.002, "grad_norm": 0.01, "update_norm": 2e-4})
    scalars["overshoot"], scalars["gradient_cosine"] = np.nan, np.where(steps % 10 == 0, 0.85, np.nan)
    measured = [2, 20, 200, 400, 900]
    estimates = {"stability": 2.5e-5, "progress": 1e-3, "preconditioned": 0.05, "smallest": -0.05}
    curvature = pd.DataFrame({"step": measured, **estimates, "smallest_residual": 1e-6})
    curvature["condition"] = [np.nan, 20.0, along, along, along]
    curvature["eigenvalues"] = [[0.05, 0.04]] * len(measured)
    batches = pd.DataFrame({"step": [410], "origin": [400], "smallest": [-0.04], "smallest_error": [1e-3]})
    batches = batches.assign(noise_term=3e-5, gradient_square=9e-5, gradient_square_error=5e-6, gradient_noise=1e-4)
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.002, "momentum": 0}]}
    run = Run.from_frames(meta, {"scalars": scalars, "curvature": curvature, "batches": batches})
    (alarm,) = diagnostics.diagnose(run).alarms
    assert alarm.kind == expected
    if expected == "saddle-point":  # the rate is far below the limit: that comes first
        assert "at 0.0025 % of the largest stable rate" in alarm.summary and alarm.remedies[0].startswith("raise")


@pytest.mark.exhaustive
@pytest.mark.parametrize("known", [pytest.param(True, marks=pytest.mark.exhaustive), False])
def test_a_gradient_without_noise_that_was_measured_long_ago_is_not_what_is_left(tmp_path, known):
    """Least squares on correlated inputs at its floor; where time is short the last independent batches are early."""
    data = load_diabetes()
    x = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0), dtype=torch.float32)
    y = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32)[:, None]
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path, curvature_every=20, budget=100.0) as monitor:
        for _ in range(600):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x), y))
    recorded = diagnostics.load(tmp_path)
    tables = {name: recorded.table(name) for name in ("scalars", "layers", "inputs", "curvature", "batches")}
    if not known:
        curvature, batches = tables["curvature"], tables["batches"]
        tables["curvature"] = curvature[(curvature["step"] <= 60) | (curvature["step"] == 340)]
        tables["batches"] = batches[batches["step"] <= 60]
    assert not diagnostics.diagnose(Run.from_frames(recorded.meta, tables)).alarms


def test_what_a_diagnosis_remembers_is_let_go():
    """Signals are kept for the next question about the same run, and the run with them."""
    diagnostics.diagnose(diagnostics.load(Path(__file__).parents[1] / "sample_runs" / "healthy-mlp"))
    held = [each for each in gc.get_objects() if type(each) is Remembered]
    assert held and not any(each._tables for each in held)
