"""The fault benchmark's own parts: intervals, values, labels, resumability, the split into halves."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from benchmarks.faults import __main__ as command
from benchmarks.faults import inject, labels, looks, optim, report, runner, scoring, work
from benchmarks.faults.families import all_cases
from benchmarks.faults.labels import Pair, Verdict
from benchmarks.faults.spec import HELD_OUT, Case, Setup, half, spec
from benchmarks.faults.train import Trace, build, unwatched
from benchmarks.faults.wilson import interval

BOWL = Setup(
    spec("spectrum", eigenvalues=(1.0, 0.25)),
    spec("linear", features=2, outputs=1, bias=False),
    "mse",
    spec("sgd", of_limit=0.5),
    steps=40,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (95, 100), (1, 1)])
def test_wilson_interval_is_scipys(successes, trials):
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_wilson_interval_without_trials_knows_nothing():
    assert interval(0, 0) == (0.0, 1.0)


# --- the configurations ---------------------------------------------------------------------------------------------


def test_names_are_unique_and_no_training_is_listed_twice():
    names = [(case.family, case.name) for case in all_cases()]
    assert len(set(names)) == len(names)


def test_at_least_150_healthy_configurations_and_as_many_as_faulty():
    healthy = sum(case.healthy for case in all_cases())
    assert healthy >= 150
    assert healthy >= len(all_cases()) - healthy


def test_every_faulty_configuration_has_a_twin_and_a_rung():
    for case in all_cases():
        assert case.healthy or (case.twin is not None and case.rung >= 1), case.key


def test_families_climb_at_least_four_severities():
    rungs: dict[str, set[int]] = {}
    for case in all_cases():
        if not case.healthy:
            rungs.setdefault(case.family, set()).add(case.rung)
    short = {name: found for name, found in rungs.items() if len(found) < 4}
    assert set(short) <= {"detached"}  # cut off after one layer, after two, or the loss itself


def test_expected_kinds_are_the_catalogues():
    from diagnostics.rules import catalogue

    assert {kind for case in all_cases() for kind in case.kinds} <= set(catalogue())


def test_tuning_never_sees_what_is_held_out():
    tuned = [case for case in all_cases() if half(case) == "tune"]
    reported = [case for case in all_cases() if half(case) == "report"]
    for name, value in (
        ("architecture", lambda c: c.setup.model.name),
        ("optimizer", lambda c: c.setup.optimizer.name),
        ("data", lambda c: c.setup.data.name),
        ("family", lambda c: c.family),
    ):
        held = set(HELD_OUT[name])
        assert held.isdisjoint(map(value, tuned))
        assert held <= set(map(value, reported))


def test_key_follows_the_training_not_the_label():
    case = Case("family", "name", BOWL)
    assert Case("family", "name", BOWL, kinds=("ravine",), rung=3).key == case.key
    assert Case("family", "name", BOWL.but(steps=41)).key != case.key


# --- the planted faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "momentum", "limit"),
    [("sgd", 0.0, 1.0), ("momentum", 0.9, 1.9), ("nesterov", 0.9, 1.9 / 2.8)],
)
def test_limit_is_the_closed_form(optimizer, momentum, limit):
    """MSE on a design whose X'X/n has top eigenvalue 1: the Hessian's is 2, gradient descent's limit 2/2."""
    options = {"of_limit": 1.0} if optimizer == "sgd" else {"of_limit": 1.0, "momentum": momentum}
    training = build(BOWL.but(optimizer=spec(optimizer, **options)), 0)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(limit, rel=1e-4)


def test_sharpness_is_the_dense_hessians():
    training = build(BOWL.but(data=spec("teacher"), model=spec("mlp", widths=(8, 4, 1), act="tanh")), 0)
    weights = dict(training.model.double().named_parameters())
    x, y = training.x.double(), training.y.double()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(weights, flat.split([p.numel() for p in weights.values()]), strict=True))
        shaped = {name: parts[name].view_as(p) for name, p in weights.items()}
        return torch.nn.functional.mse_loss(torch.func.functional_call(training.model, shaped, (x,)), y)

    hessian = torch.autograd.functional.hessian(loss, torch.cat([p.detach().flatten() for p in weights.values()]))
    found = optim.sharpness(training.loss, training.model, training.x, training.y)
    assert found == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-3)


def test_clone_copies_incoming_and_outgoing_weights():
    """Six channels, each feeding a 3x3 kernel of the next convolution; three of them made one."""
    cloned = spec("clone", incoming="0", outgoing="3", copies=3)
    data, model = spec("digits", rows=50, shape="image"), spec("cnn", channels=6)
    training = build(Setup(data, model, "cross_entropy", spec("sgd", lr=0.1), inject=(cloned,)), 0)
    pair = Pair(Trace([], [], []), training)
    assert labels.identical_units(pair, "0", "3", at_least=2).confirmed
    assert not labels.identical_units(pair, "0", "3", at_least=3).confirmed


def test_same_setup_and_seed_is_the_same_training():
    first, second = (unwatched(BOWL, 3)[0] for _ in range(2))
    assert first == second
    assert unwatched(BOWL, 4)[0] != first


# --- the labels -----------------------------------------------------------------------------------------------------


def trace(*judged: float) -> Trace:
    return Trace(list(judged), list(range(len(judged))), list(judged))


def test_worse_by_final_loss_by_slowness_or_not_at_all():
    twin = trace(1.0, 0.5, 0.1, 0.01, 0.01, 0.01)
    training = build(BOWL, 0)
    assert labels.worse(Pair(trace(1.0, 0.9, 0.8, 0.8, 0.8, 0.8), training, twin)).confirmed
    assert labels.worse(Pair(trace(1.0, 0.9, 0.5, 0.01, 0.01, 0.01), training, trace(1.0, 0.01, 0.01, 0.01))).confirmed
    assert labels.worse(Pair(trace(1.0, math.nan), training, twin)).confirmed
    assert not labels.worse(Pair(twin, training, twin)).confirmed
    assert not labels.worse(Pair(trace(1.0, 0.9), training, trace(1.0, 1.2, 1.2, 1.2))).confirmed  # twin does not train


def test_label_needs_four_fifths_of_the_seeds():
    yes, no = Verdict(True, ""), Verdict(False, "")
    assert labels.kept([yes, yes, yes, yes, no])
    assert not labels.kept([yes, yes, yes, no, no])


def test_classes_of_units_up_to_sign():
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, -2.0], [0.3, 0.1]])
    out = torch.tensor([[0.5], [0.5], [-0.5], [0.5]])
    assert labels.classes(rows, out) == 2
    assert labels.classes(rows, torch.tensor([[0.5], [0.6], [0.5], [0.5]])) == 4


def test_loss_shows_a_blow_up_and_a_lag():
    assert labels.shown_at(trace(1.0, 2.0, 11.0, 500.0), None) == 3
    assert labels.shown_at(trace(1.0, 0.99, 0.9, 0.9, 0.9), trace(1.0, 0.98, 0.5, 0.2, 0.1)) == 2
    assert labels.shown_at(trace(1.0, 0.5), trace(1.0, 0.5)) is None


# --- running --------------------------------------------------------------------------------------------------------


def small(**changes) -> Case:
    return Case("small", "bowl", BOWL.but(**changes), evidence=spec("well"))


def test_labels_are_not_made_twice_but_follow_their_check(tmp_path):
    case = small()
    work.label(case, 0, tmp_path)
    target = work.path(tmp_path, "labels", case, 0)
    written = target.stat().st_mtime_ns
    work.label(case, 0, tmp_path)
    assert target.stat().st_mtime_ns == written
    stricter = Case("small", "bowl", BOWL, evidence=spec("well", below=0.0))
    assert work.read_label(tmp_path, stricter, 0) is None


def test_interrupted_recording_starts_again_and_a_finished_one_does_not(tmp_path):
    case = small(steps=12)
    leftover = work.run_dir(tmp_path, case, 0) / "torn"
    leftover.mkdir(parents=True)
    work.record(case, 0, tmp_path)
    assert not leftover.exists()
    marker = work.path(tmp_path, "trained", case, 0)
    written = marker.stat().st_mtime_ns
    work.record(case, 0, tmp_path)
    assert marker.stat().st_mtime_ns == written
    assert len(json.loads(marker.read_text())["losses"]) == 12


def test_failed_job_is_reported_with_its_configuration(tmp_path):
    errors = runner.run([("label", small(loss="no such loss"), 0)], tmp_path, 1, "labels")
    assert "KeyError" in next(iter(errors.values()))


@pytest.mark.exhaustive
def test_report_of_a_small_pass(tmp_path):
    faulty = Case(
        "past-limit",
        "sgd",
        BOWL.but(optimizer=spec("sgd", of_limit=1.5)),
        1,
        BOWL,
        ("lr-unstable",),
        ("learning-rate",),
    )
    mislabelled = Case("past-limit", "harmless", BOWL.but(steps=41), 2, BOWL, ("ravine",))
    cases = [faulty, mislabelled, small()]
    for stage in ("label", "record", "score"):
        assert not runner.run(runner.jobs(stage, cases, [0]), tmp_path, 1, stage)
    kept, dropped = scoring.sift(cases, [0], tmp_path)
    assert kept == [faulty, small()]
    assert [d.case for d in dropped] == [mislabelled]
    runs = scoring.table(kept, [0], tmp_path)
    assert runs["bitwise"].all()
    assert runs.set_index("family")["right"].to_dict() == {"past-limit": True, "small": False}
    text = report.write(runs, dropped, {"past-limit": 2, "small": 1}, tmp_path)
    assert "past-limit: 1 of 2" in text
    assert "excess" in text  # the reason why the rung was dropped
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 3


def test_quick_is_a_subset_of_the_tuning_half():
    cases = command.chosen(command.arguments(["--quick"]))
    assert all(half(case) == "tune" for case in cases)
    assert 40 < len(cases) < 120


def test_look_at_the_reporting_half_is_logged(tmp_path):
    file = tmp_path / "looks.log"
    looks.log("--half report", "abc", 7, "first look", file)
    assert "7 configurations  --half report  first look" in file.read_text()


def test_outlier_touches_one_batch_only():
    disturb = inject.outlier(at=3, factor=10.0)
    x, y = torch.ones(2), torch.zeros(2)
    assert [disturb(step, x, y)[0][0].item() for step in (2, 3, 4)] == [1.0, 10.0, 1.0]


def test_data_come_from_the_seed(tmp_path: Path):
    first, second, other = (build(BOWL, seed).x for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
