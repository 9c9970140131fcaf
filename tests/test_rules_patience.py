"""Looked at while it trains, a run is held up only by what has lasted."""

from pathlib import Path

import pytest

import diagnostics
from diagnostics.rules import LASTED, catalogue

SAMPLES = Path(__file__).parents[1] / "sample_runs"
OF_PACE = {kind for kind, module in catalogue().items() if getattr(module, "OF_PACE", False)}


def alarms(run):
    return {each.kind for each in diagnostics.diagnose(run).alarms}


@pytest.mark.every_case
@pytest.mark.parametrize("name", ["wiring-gradients-zeroed", "healthy-cnn", "plateau-matching-targets", "lr-fitting"])
def test_a_sound_run_is_not_held_up_at_any_time(name):
    run = diagnostics.load(SAMPLES / name)
    for step in (8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256):
        assert not alarms(run.until(step)) & OF_PACE, step


@pytest.mark.parametrize(
    ("name", "kind"), [("lr-too-small", "lr-too-small"), ("plateau-logistic-least-squares", "plateau")]
)
def test_what_lasts_becomes_an_alarm(name, kind):
    run = diagnostics.load(SAMPLES / name)
    early, late = (diagnostics.diagnose(run.until(step)) for step in (24, 92))
    told = next(each for each in early.findings if each.kind == kind)
    assert told.severity == "info" and told.summary.endswith("at step 6 nothing was seen to hold the run up.")
    assert [each.kind for each in late.alarms] == [kind]
    assert "So far" not in late.alarms[0].summary


def test_a_run_that_has_ended_is_judged_at_once():
    run = diagnostics.load(SAMPLES / "lr-too-small")
    assert run.last_step == 100 and alarms(run) == {"lr-too-small"}
    early = run.until(24)
    early.meta["status"] = "finished"
    assert alarms(early) == {"lr-too-small"}


@pytest.mark.parametrize("name", ["lr-unstable-digits", "dead-units-huge-step", "symmetry-zero-start"])
def test_what_is_no_matter_of_pace_is_told_at_once(name):
    run = diagnostics.load(SAMPLES / name)
    assert alarms(run.until(run.last_step // LASTED - 1))
