"""Records that miss something, or hold what no rule was made for: no alarm, no crash and no false sentence."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import diagnostics
from diagnostics.rules import _limits as limits
from diagnostics.rules import _optimizer as told
from diagnostics.rules import _signals as signals
from diagnostics.rules import cliff, diagnose, local_minimum, plateau, saddle_point, wiring
from diagnostics.rules._explained import explained
from diagnostics.rules._ravine_words import _remedies
from diagnostics.rules._raw_inputs import raw
from diagnostics.rules._small_rate_words import LATER, finding
from diagnostics.run import Run

STEPS = np.arange(1, 401)
AGE = STEPS - 1.0
NOISE = np.sin(1e3 * STEPS)
META = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"momentum": 0.0}]}


def run_of(meta=None, **tables) -> Run:
    return Run.from_frames(META | (meta or {}), {name: pd.DataFrame(columns) for name, columns in tables.items()})


def scalars(**columns):
    return {"step": STEPS, "lr": 0.1, "grad_norm": 1.0} | columns


@pytest.mark.parametrize("left_out", ["every second", "the last"])
@pytest.mark.filterwarnings("ignore:monitor.step was not called")
def test_losses_that_were_not_told_are_no_nan(left_out, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for k in range(60):
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            if k % 2 == 0 if left_out == "every second" else k < 59:
                monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    assert np.isnan(run.table("scalars")["loss"]).any()
    assert not diagnose(run).alarms


def test_a_loss_that_is_nan_is_still_one():
    loss = np.where(STEPS >= 300, np.nan, 1.0)
    run = run_of(scalars=scalars(loss=loss, grad_norm=loss))
    assert "non-finite" in [each.kind for each in diagnose(run).alarms]


def test_a_gradient_that_could_not_be_measured_is_no_nan():
    failed = {"step": [200], "kind": "measurement-failed", "message": "", "subject": "gradients"}
    table = scalars(loss=np.exp(-AGE / 50) + 0.01, grad_norm=np.where(STEPS == 200, np.nan, 1.0))
    assert signals.first_nonfinite(run_of(scalars=table, events=failed)) is None
    assert signals.first_nonfinite(run_of(scalars=table)) == 200


@pytest.mark.parametrize(("moved", "told"), [(96.9, "lr-unstable"), (0.5, "non-finite")])
def test_a_first_update_after_which_nothing_is_a_number(moved, told):
    rest = np.where(STEPS > 1, np.nan, 1.0)
    table = scalars(loss=38.7 * rest, grad_norm=9687 * rest, update_norm=moved * rest, weight_norm=96.6 * rest)
    event = {"step": [2], "kind": "non-finite", "message": "at update 2: rnn returned NaN", "subject": "op:rnn"}
    (found,) = diagnose(run_of(scalars=table, events=event)).alarms
    assert found.kind == told and ("moved the weights by 96.9" in found.summary) == (moved > 1)


@pytest.mark.parametrize(("mean", "expected"), [([np.nan, np.nan], False), ([np.nan, 9.0], True), ([], False)])
def test_inputs_that_are_known_in_part(mean, expected):
    table = {"step": 1, "feature": [str(i) for i in range(len(mean))], "mean": mean, "std": 0.0}
    assert raw(run_of(inputs=table)) is expected


def test_a_jump_of_the_gradient_where_no_loss_is_a_number():
    table = scalars(loss=np.nan, grad_norm=np.where(STEPS == 300, 1e6, 1.0))
    told = {"step": [1], "kind": "non-finite", "message": "", "subject": "loss"}
    found = diagnostics.diagnose(run_of(scalars=table, events=told))
    assert [each.kind for each in found.alarms] == ["non-finite"]
    assert not found.crashed


def test_what_a_rule_says_of_others_needs_no_evidence_that_they_lack():
    """Betas the wrong way round beside a layer of one unit: each kind of finding has evidence of its own."""
    at = [100, 200, 300, 400]
    run = run_of(
        {"optimizer": "Adam", "hyperparameters": [{"betas": [0.999, 0.9]}], "parameters": 100},
        scalars=scalars(loss=1.0, lr=1e-3, update_norm=np.where(STEPS == 50, 1.0, 1e-3)),
        layers={"step": at, "layer": "0.weight", "grad_norm": 1.0, "weight_norm": 1.0, "update_norm": 1e-3},
        symmetry={"step": at, "layer": "0", "units": 8, "distinct_units": 1, "groups": 1, "alike_units": 7},
    )
    diagnosis = diagnose(run)
    assert not diagnosis.crashed and {"lr-unstable"} <= {each.kind for each in diagnosis.findings}


def test_a_rule_that_fails_where_it_is_asked_of_others_is_told(monkeypatch):
    monkeypatch.setattr(wiring, "explains", lambda finding, other: 1 / 0)
    run = run_of({"made_in_forward": ["x"], "norms_of_one": ["norm"]}, scalars=scalars(loss=1.0))
    diagnosis = diagnose(run)
    assert "ZeroDivisionError" in diagnosis.crashed["wiring"] and diagnosis.alarms


@pytest.mark.parametrize("explained", [0.0, 0.3])
def test_weights_that_decayed_but_still_tell_of_the_inputs(explained):
    """A loss at its floor, 0.3 below that of the same answer to all: not "next to nothing" is passed on."""
    loss = 1 - explained + explained * np.exp(-AGE / 30) + 0.02 * NOISE
    columns = {"constant_loss": 1 + 0.02 * np.cos(1e3 * STEPS), "weight_norm": np.exp(-AGE / 200)}
    run = run_of(
        {"optimizer": "AdamW", "hyperparameters": [{"weight_decay": 0.5}]},
        scalars=scalars(loss=loss, **columns),
        layers={"step": [100, 200, 300], "layer": "0.weight", "grad_norm": 1.0, "weight_norm": 1.0, "update_norm": 0.1},
    )
    causes = [each.cause for each in plateau.check(run) if each.alarm]
    assert ("weight-decay" in causes) == (explained == 0), causes


@pytest.mark.parametrize(
    ("floor", "held", "told"), [(0.07, 0.4, False), (0.5, 0.4, True), (0.07, 0.95, True), (0.001, 0.95, False)]
)
@pytest.mark.parametrize("targets", [[-0.5, 3.0], None])
def test_targets_below_a_relu_that_fits(floor, held, told, targets):
    """y = relu(f(x)) + noise: the noise alone is out of reach, and is no more than a part (`held`) of the error."""
    measured = STEPS % 10 == 0
    shares = {"unreachable_fraction": np.where(measured, 0.25, np.nan)}
    shares["unreachable_error"] = np.where(measured, held, np.nan)
    run = run_of(
        {"loss_path": "relu -> mse_loss", "targets": targets or []},
        scalars=scalars(loss=np.exp(-AGE / 20) + floor, constant_loss=1 + 0.02 * NOISE, **shares),
    )
    told &= floor == 0.5 or targets is not None  # of few of a size that is not known: an offset of what should be 0
    assert bool([each for each in plateau.check(run) if each.cause == "target-range"]) == told


@pytest.mark.parametrize(("later", "told"), [(1.0, False), (0.0, True)])
def test_a_first_loss_without_a_graph(later, told):
    run = run_of(
        scalars=scalars(loss=np.exp(-AGE / 50), grad_norm=np.where(STEPS > 1, later, 0.0)),
        events={"step": [1], "kind": "no-graph", "message": "", "subject": "loss"},
        layers={"step": [1, 11, 21, 31], "layer": "0.weight", "grad_norm": later, "grad_missing": 1.0 - later},
    )
    assert ("detached" in [each.cause for each in wiring.check(run)]) == told


@pytest.mark.parametrize(
    ("loss", "severity"),
    [
        (-0.5 + 0.01 * NOISE, "critical"),
        (-0.5 - 0.5 * (1 - np.exp(-AGE / 50)), "info"),
        (1.0 + 0.01 * NOISE, "critical"),
        (np.exp(-AGE / 50), "info"),
    ],
)
def test_a_loss_below_zero_that_stands_has_not_learned(loss, severity):
    run = run_of({"made_in_forward": ["x"]}, scalars=scalars(loss=loss))
    (found,) = wiring.check(run)
    assert (found.cause, found.severity) == ("made-in-forward", severity)


def test_one_wiring_fault_does_not_hide_another():
    layers = [{"name": f"{k}.weight", "shape": [4, 4], "optimized": k == 0} for k in range(2)]
    run = run_of(
        {"norms_of_one": ["norm"], "layers": layers},
        scalars=scalars(loss=1.0 + 0.01 * NOISE),
        events={"step": [1], "kind": "not-in-optimizer", "message": "", "subject": "1.weight"},
        layers={"step": [1, 11, 21, 31], "layer": "1.weight", "grad_norm": 1.0, "update_norm": 0.0, "weight_norm": 1.0},
    )
    causes = {each.cause for each in diagnose(run).findings}
    assert {"norm-of-one", "not-in-optimizer"} <= causes, causes


def test_the_rate_beside_a_ratio_is_the_one_it_was_measured_at():
    rates = np.where(STEPS <= 380, 0.1, 0.01)
    curvature = {"step": [100, 200, 300], "stability": [0.9, 0.995, 0.9]}
    run = run_of(scalars=scalars(loss=1.0, lr=rates), curvature=curvature)
    assert told.rate_at(run, np.array([100, 200, 300])) == 0.1
    assert limits.at_last_rate(run) == pytest.approx(0.09)
    assert np.isnan(limits.at_last_rate(run_of(scalars=scalars(loss=1.0, lr=np.nan), curvature=curvature)))


def test_a_warm_up_from_a_rate_of_zero_keeps_its_limit():
    gradients = np.where(STEPS >= 201, 1.3 ** np.minimum(STEPS - 201.0, 60), 1.0)
    run = run_of(
        scalars=scalars(
            loss=np.where(STEPS >= 201, 1.2 * gradients, 2 - 0.004 * AGE),
            lr=0.4 * np.minimum(AGE / 20, 1),
            grad_norm=gradients,
        ),
        curvature={"step": [100, 195], "stability": [0.8, 1.5], "eigenvalues": [[4.0], [7.5]]},
    )
    (found,) = [each for each in diagnose(run).findings if each.kind == "lr-unstable"]
    assert found.cause == "schedule" and found.evidence["stability ratio"] == pytest.approx(1.5, rel=0.01)


def test_no_saddle_point_where_no_gradient_was_recorded():
    estimates = {"step": [50, 100, 150], "smallest": -0.5, "smallest_residual": 0.001, "progress": 0.1}
    estimates |= {"stability": 0.1, "eigenvalues": [[1.0]] * 3}
    loss = np.where(STEPS < 200, 1.0, np.exp(-(AGE - 199) / 50)) + 1e-4 * NOISE
    run = run_of(scalars={"step": STEPS, "loss": loss, "lr": 0.1}, curvature=estimates)
    assert not list(saddle_point.check(run))


def test_measurements_that_are_missing_crash_no_rule():
    modules = [{"name": "0", "type": "Linear"}, {"name": "1", "type": "Sigmoid"}, {"name": "2", "type": "Linear"}]
    activations = {"modules": modules, "layers": [{"name": "0.weight", "shape": [8, 4]}, {"name": "2.weight"}]}
    units = {"step": [100, 200, 300], "layer": "1", "activation": "sigmoid", "units": 8, "hidden": 1.0}
    run = run_of(activations, scalars=scalars(loss=1.0), units=units | {"saturated_fraction": 0.95})
    assert not diagnose(run).crashed
    curvature = {"step": [200, 300], "stability": 0.5, "condition": 1e3, "progress": 0.1, "eigenvalues": [[2.0]] * 2}
    run = run_of(activations, scalars=scalars(loss=1.0), units=units | {"mean": 0.0, "std": 0.0}, curvature=curvature)
    assert not diagnose(run).crashed
    cosines = dict.fromkeys(("pair_cosine", "left_cosine", "right_cosine"), 1.0000001)
    assert not diagnose(run_of(scalars=scalars(loss=1.0, **cosines))).crashed


@pytest.mark.parametrize(
    ("optimizer", "momentum", "first"),
    [("Adam", 0.0, "put normalization"), ("SGD", 0.9, "use torch.optim.Adam"), ("SGD", 0.0, "use momentum")],
)
def test_no_remedy_for_a_ravine_that_is_in_use_already(optimizer, momentum, first):
    options = {"betas": [0.9, 0.999]} if optimizer == "Adam" else {"momentum": momentum}
    run = run_of({"optimizer": optimizer, "hyperparameters": [options]}, scalars=scalars(loss=1.0))
    remedies = _remedies(run, "intrinsic", 1e4)
    assert remedies[0].startswith(first) and not any("SGD" in each for each in remedies if optimizer == "Adam")


def test_a_schedule_that_ended_at_zero_is_the_schedules_doing():
    run = run_of(scalars=scalars(loss=1.0, lr=np.where(STEPS < 100, 0.1, 0.0)))
    found = finding(run, ".", first=100, cause="schedule", remedy=LATER)
    assert found.remedies[0].startswith("lower the rate later") and "0.1" in found.remedies[0]


@pytest.mark.parametrize("measured", [False, True])
def test_a_wall_says_only_what_was_measured(measured):
    norms, loss = np.ones(400), 0.2 + 0.01 * NOISE
    loss[0] = 2.0
    for at in (200, 250, 300, 350):
        norms[at] = 1000.0
        loss[at : at + 8] = 1.5
    tables = {"curvature": {"step": [100], "stability": [0.1]}} if measured else {}
    (found,) = cliff.check(run_of(scalars=scalars(loss=loss, grad_norm=norms, grad_norm_unclipped=norms), **tables))
    assert ("fitted the curvature" in found.summary) == measured


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ({}, "has shrunk from 1 to"),
        ({"batches": {"step": [390], "gradient_square": 1e-9, "gradient_square_error": 1e-8}}, "zero within its noise"),
    ],
)
def test_how_small_the_gradient_of_a_minimum_is(batches, words):
    norms = np.maximum(np.exp(-AGE / 20), 1e-5)
    estimates = {"step": [200, 300], "eigenvalues": [[1.0]] * 2, "smallest": 0.01, "smallest_residual": 1e-4}
    run = run_of(
        scalars=scalars(loss=0.5 + np.exp(-AGE / 20), grad_norm=norms),
        curvature=estimates | {"condition": 2.0, "stability": 0.1},
        **batches,
    )
    (found,) = local_minimum.check(run)
    assert words in found.summary


@pytest.mark.parametrize(
    ("began", "distinct", "severity"),
    [
        (298, 298, "info"),
        (280, 280, "warning"),
        (294, 294, "warning"),
        (2, 2, "critical"),
        (300, 280, "info"),
        (300, 140, "warning"),
        (300, 2, "critical"),
    ],
)
def test_how_many_units_alike_are_a_fault(began, distinct, severity):
    """Of 300: two that pruning left with nothing are no fault of the training, nor are some that bounds made alike."""
    at = [100, 200, 300, 400]
    counts = np.array([began, distinct, distinct, distinct])
    run = run_of(
        scalars=scalars(loss=np.exp(-AGE / 50)),
        layers={"step": at, "layer": "0.weight", "grad_norm": 1.0, "weight_norm": 1.0, "update_norm": 1e-3},
        symmetry={"step": at, "layer": "0.weight", "units": 300, "distinct_units": counts, "groups": 1}
        | {"alike_units": 300 - counts},
    )
    assert [each.severity for each in diagnose(run).findings if each.kind == "symmetry"] == [severity]


def test_nothing_is_said_of_answers_where_all_later_losses_are_nan():
    """The last comparison that could be made was before them; there is no loss since to compare."""
    steps = np.arange(1, 101)
    told = np.where(steps == 45, 1.0, np.nan)
    run = run_of(
        scalars=pd.DataFrame(
            {
                "step": steps,
                "loss": np.where(steps <= 50, 1.0, np.nan),
                "grad_norm": 1.0,
                "constant_loss": told,
                "input_sum": told,
            }
        )
    )
    assert np.isnan(explained(run, 51, 100, least=1).share)
