"""What a user was warned of while a run was recorded is read where the run is judged, and compared by."""

import json

import pandas as pd
import pytest

from diagnostics.charts import compare
from diagnostics.run import OTHER_WEIGHTS, Run, RunWriter, load, warnings
from diagnostics.views import report
from diagnostics.views.text import md
from tests.test_views_pages import opened, train

CONTINUED = f"continues after update 20{OTHER_WEIGHTS}runs/a: their norm was 329 there and is 6.84 now."


@pytest.fixture
def folder(tmp_path):
    writer = train(tmp_path / "mixed")
    writer.event(1, "budget", "measuring cost much")
    writer.event(3, "measurement-failed", "log could not be measured: ValueError: good", "log")
    writer.event(4, "measurement-failed", "log could not be measured: TypeError: None", "log")
    writer.event(20, "resumed", CONTINUED)
    writer.close("finished")
    train(tmp_path / "plain").close("finished")
    return tmp_path


def test_the_diagnosis_begins_with_what_the_user_was_warned_of(folder, monkeypatch):
    app = opened("diagnosis", folder, monkeypatch, run="mixed")
    box = app.expander[0]
    assert (
        "this run was continued at step 20 with other weights than it had" in box.label and "(and 1 more)" in box.label
    )
    text = box.markdown[0].value
    assert md(CONTINUED) in text and "TypeError" in text and "ValueError" not in text and "measuring cost" not in text
    assert "what came before may be of another training" in report.page(load(folder / "mixed"))
    labels = [each.label for each in opened("diagnosis", folder, monkeypatch, run="plain").expander]
    assert not any("While recording" in label for label in labels)


def test_a_run_that_goes_on_as_promised_is_no_warning(tmp_path):
    writer = RunWriter(tmp_path / "run", {"name": "run"})
    writer.event(5, "resumed", "continues after update 4")
    writer.close("finished")
    assert not warnings(load(tmp_path / "run"))


def test_settings_that_changed_within_a_run_are_compared(folder):
    for rate, momentum in ((0.1, 0.5), (0.1, 0.5), (0.1, 0.9)):
        group = {"lr": rate, "momentum": momentum}
        RunWriter(folder / "mixed", {"optimizer": "SGD", "hyperparameters": [group]}).close("finished")
    rows = compare.differences({name: load(folder / name) for name in ("mixed", "plain")})
    assert rows["momentum"] == ["- up to step 20, then 0.5 up to step 20, then 0.9", "-"]
    assert rows["continued with other weights"] == ["at step 20", "-"] and "lr" not in rows


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ([0.1] * 4, "0.1"),
        ([2, 2, 0.1, 0.1], "2 up to step 2, then 0.1"),
        ([0.4, 0.2, 0.1, 0.05], "0.4 at first, 0.05 at the end"),
        ([0.1, 0.2, 0.4, 0.05], "0.1 at first, 0.05 at the end, 0.4 at most"),
    ],
)
@pytest.mark.every_case
def test_a_rate_that_changed_is_told_as_it_was(rates, said):
    frame = pd.DataFrame({"step": range(1, 5), "loss": 1.0, "lr": rates, "grad_norm": 1.0})
    run = Run.from_frames({"hyperparameters": [{"lr": rates[-1] if rates[0] == 2 else rates[0]}]}, {"scalars": frame})
    assert compare.flattened(run)["lr"] == said


@pytest.mark.parametrize("earlier", [[3], [{}], [{"optimizer": 4, "hyperparameters": [1], "last_step": "x"}], "no"])
@pytest.mark.every_case
def test_rotten_settings_of_earlier_sessions_are_survived(earlier, folder, monkeypatch):
    about = folder / "mixed" / "run.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "earlier": earlier}))
    assert not opened("compare", folder, monkeypatch, a="mixed", b="plain").exception
