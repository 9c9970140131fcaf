"""Rules on real watched runs whose diagnosis is known in closed form, and the precedence between findings."""

import pytest
import torch
from torch import nn

import diagnostics
from diagnostics.rules import Finding, _one_alarm_a_fault


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
    with diagnostics.watch(model, opt, path) as monitor:
        for _ in range(steps):
            opt.zero_grad()
            loss = model()
            loss.backward()
            opt.step()
            monitor.step(loss, closure=model)
    return diagnostics.diagnose(diagnostics.load(path))


def alarms(diagnosis):
    return [(finding.kind, finding.cause) for finding in diagnosis.alarms]


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


def finding(kind, first_step=1, severity="critical", **evidence) -> Finding:
    return Finding(kind, None, severity, first_step, None, (), "", evidence, ())


def test_one_fault_gives_one_alarm_and_the_rest_is_its_evidence():
    dead = finding("dead-units", 5, **{"dead fraction": 1.0})
    kept = _one_alarm_a_fault([dead, finding("plateau", 8)])
    assert [each.kind for each in kept] == ["dead-units"]
    assert kept[0].evidence["explains plateau since step"] == 8


def test_a_tenth_of_dead_units_does_not_explain_a_plateau():
    dead = finding("dead-units", 5, **{"dead fraction": 0.1})
    assert [each.kind for each in _one_alarm_a_fault([dead, finding("plateau", 8)])] == ["dead-units", "plateau"]
