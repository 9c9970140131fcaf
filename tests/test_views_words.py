"""Numbers and sentences of the pages: right, literal, and with a next step."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from diagnostics import terminal
from diagnostics.rules import Diagnosis, Finding, verdict
from diagnostics.run import Run, RunWriter, summarize
from diagnostics.views import common, curvature, data, report
from diagnostics.views.text import number
from tests.test_views_pages import opened, texts, train

FINDING = Finding("cliff", None, "warning", 3, 7, ("a*b* $x$",), "Set `lr=0.1` now: it jumped", {}, ())


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (99.7, 2, "100"), (150.4, 2, "150"), (999.7, 3, "1,000"), (999.97, 4, "1,000"), (-45.678, 2, "-46"),
        (0.00031234, 3, "0.000312"), (0.099996, 4, "0.1"), (9.7e-5, 1, "0.0001"), (2.5e6, 3, "2.5e+06"),
    ],
)  # fmt: skip
@pytest.mark.every_case
def test_a_number_is_rounded_before_its_form_is_chosen(value, digits, text):
    assert number(value, digits) == text


def test_no_band_is_named_where_the_limit_of_oscillation_is_not_known():
    assert curvature.sentence(0.3, math.nan, 5).endswith("0.3 of the largest stable one")
    assert "oscillates" in curvature.sentence(0.7, 0.5, 5) and "without swinging" in curvature.sentence(0.3, 0.5, 5)


def test_one_estimate_is_no_verdict_and_where_nothing_curves_upwards_nothing_decays():
    said = [curvature.sentence(ratio, 0.5, 5) for ratio in (-0.0359, 0.0, 0.3, 7.0)]
    assert all(each.startswith("The latest estimate, at step 5, says: ") for each in said)
    assert said[0] == said[1] and said[0].endswith("no measured direction curves upwards")
    assert said[3].endswith("the step was 7 times the largest stable one")


@pytest.mark.parametrize(("every", "said"), [(0, "`curvature_every=0` switches it off"), (None, "See Events")])
@pytest.mark.parametrize("page", ["curvature", "whatif"])
def test_who_gave_a_closure_is_not_told_to_give_one(page, every, said, tmp_path, monkeypatch):
    train(tmp_path / "run", closure=True, curvature_every=every).close("finished")
    told = opened(page, tmp_path, monkeypatch, run="run").info[0].value
    assert said in told and "closure=" not in told


def test_too_short_for_a_curve_names_the_next_step(tmp_path, monkeypatch):
    train(tmp_path / "run", steps=1).close("finished")
    told = opened("training", tmp_path, monkeypatch, run="run").info[0].value
    assert "monitor.step" in told and "after `optimizer.step()`" in told and "yet" not in told


def test_a_layer_name_is_no_markdown(tmp_path, monkeypatch):
    train(tmp_path / "run").close("finished")
    monkeypatch.setattr(common.data, "diagnosis", lambda *_: Diagnosis((FINDING,)))
    shown = texts(opened("diagnosis", tmp_path, monkeypatch, run="run"))
    assert r"a\*b\* \$x\$" in shown and "a*b*" not in shown


@pytest.mark.parametrize(
    ("last", "span"), [(None, "since step 1,500"), (1500, "step 1,500"), (2500, "step 1,500 to 2,500")]
)
def test_a_finding_that_ended_is_said_to_have(last, span):
    """With the same words on the page, in the report and in the terminal."""
    finding = replace(FINDING, first_step=1500, last_step=last)
    assert finding.span == span
    frame = pd.DataFrame({"step": [1, 2], "loss": 1.0, "lr": 0.1, "grad_norm": 1.0})
    assert f"<span class=tag>{span}</span>" in report.card(Run.from_frames({}, {"scalars": frame}), finding)
    assert terminal.finding_lines(finding, colour=False)[0] == f"  WARNING cliff, {span}"


def test_an_empty_name_of_the_folder_is_none(monkeypatch):
    monkeypatch.setenv("DIAGNOSTICS_RUNS", "")
    assert data.folder() == "runs"


def test_the_headline_of_a_report_shows_code_as_code():
    run = Run.from_frames({}, {})
    (headline,) = report.headline(verdict(summarize(run, Diagnosis((FINDING,))), "finished"))
    assert "Set <code>lr=0.1</code> now" in headline


def test_a_file_is_named_as_its_run(tmp_path, monkeypatch):
    for name in ("first-run", "second_run"):
        RunWriter(tmp_path / name, {"name": name}).close("finished")
    shown = []
    monkeypatch.setattr(common.st, "download_button", lambda label, _, file, *__, **___: shown.append((label, file)))
    opened("compare", tmp_path, monkeypatch, a="first-run", b="second_run")
    assert shown == [(r"1 first\-run.csv", "1 first-run.csv"), (r"2 second\_run.csv", "2 second_run.csv")]


def test_on_the_limit_a_direction_never_settles(tmp_path, monkeypatch):
    app = opened("lecture", tmp_path, monkeypatch, topic="learning rate")
    for product, fate in ((1.98, "and shrinks"), (2.0, "and never settles")):
        app.slider(key="product").set_value(product).run()
        assert fate in texts(app)


def test_an_update_that_changed_nothing_to_four_digits_is_not_said_to_go_uphill(monkeypatch):
    row = {"curvature": 2.0, "slope": 1.0, "moved": 0.1}
    monkeypatch.setattr(curvature.slices, "began", lambda _: 0.17731)
    monkeypatch.setattr(curvature.slices, "here", lambda _: 0.17732)
    assert curvature.what_the_step_did(row).endswith("as it was, to four digits: 0.1773.")
    monkeypatch.setattr(curvature.slices, "here", lambda _: 0.1800)
    assert "from 0.1773 to 0.18" in curvature.what_the_step_did(row)


def test_what_was_not_found_is_said_not_to_have_been(tmp_path, monkeypatch):
    """In the words of the rules alone it would read as a list of faults."""
    train(tmp_path / "run").close("finished")
    monkeypatch.setattr(common.data, "diagnosis", lambda *_: Diagnosis(clean=("wiring",)))
    said = "Not found: The training loop does not do what it looks like"
    assert said in texts(opened("diagnosis", tmp_path, monkeypatch, run="run"))
    assert said in report.checked(Diagnosis(clean=("wiring",)))
