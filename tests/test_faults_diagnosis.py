"""A subset of the fault benchmark held in CI: strong rungs get the right kind, healthy runs none."""

import pytest

from benchmarks.faults import scoring, work
from benchmarks.faults.families import all_cases
from benchmarks.faults.spec import Case, half

STRONG = (
    "lr-above-limit--momentum-2.0",
    "ravine-scale--two-1000",
    "zero-one-loss--moons-sign",
    "logistic-least-squares--breast_cancer-10.0",
    "constant-init--mlp-0.1",
    "overflow--exp-1000",
    "missing-zero-grad--adam-0",
)
OTHER_WAYS = (  # to these kinds, or others
    "saturated-by-initialization--cancer-300",
    "dead-by-bias--moons-1.0",
    "lr-above-limit-networks--linear-diabetes-1.5",
    "hard-threshold--moons-threshold-1",
    "double-softmax--relu-7",
    "cloned-units--mlp-16",
    "domain-error--log-softmax-1000",
    "bad-data--digits-nan-30",
    "left-out--mlp-0.",
    "stale-parameters--mlp-all",
)
HEALTHY = (
    "healthy-rates--sgd-0.9",
    "healthy-regularized--dropout-mlp-0.2",
    "harmless-symmetry--zero-output-mlp",
    "harmless-units--tenth-dead-mlp",
    "outlier-batch--digits-100",
    "healthy-data--floor-adam-0.5",
)
ALSO_HEALTHY = (
    "healthy-rates--momentum-0.6",
    "healthy-rates--edge-adam",
    "healthy-regularized--accumulated-adam",
    "healthy-starts--fine-tuning-mlp",
    "healthy-structures--adapter-adam-2",
    "healthy-structures--experts-adam-3",
)


def and_in_ci(names: tuple[str, ...], more: tuple[str, ...]) -> list:
    return [*names, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in more)]


def named(name: str) -> Case:
    return next(case for case in all_cases() if f"{case.family}--{case.name}" == name)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def scored(case: Case, out) -> work.Score:
    work.label(case, 0, out)
    label = work.read_label(out, case, 0)
    assert label is not None and label.confirmed, f"label not confirmed: {label and label.reason}"
    work.record(case, 0, out)
    work.score(case, 0, out)
    score = work.read_score(out, case, 0)
    assert score is not None and not score.crashed
    assert score.bitwise, "watching changed the training"
    return score


@pytest.mark.parametrize("name", and_in_ci(STRONG, OTHER_WAYS))
def test_strong_rung_gets_its_kind(name, out):
    score = scored(named(name), out)
    assert scoring.right(named(name), score), [f.summary for f in score.findings]
    assert not scoring.extras(named(name), score)


@pytest.mark.parametrize("name", and_in_ci(HEALTHY, ALSO_HEALTHY))
def test_healthy_run_raises_no_alarm(name, out):
    assert [f.summary for f in scored(named(name), out).findings if f.alarm] == []


def test_nothing_here_is_kept_from_tuning():
    assert {half(named(name)) for name in (*STRONG, *OTHER_WAYS, *HEALTHY, *ALSO_HEALTHY)} == {"tune"}
