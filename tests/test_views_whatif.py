"""What if: it starts where the run stood, and claims nothing of an optimizer that it does not know."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from diagnostics.run import RunWriter
from diagnostics.views import judgement
from tests.test_views_pages import opened, texts

ESTIMATE: dict[str, Any] = {"eigenvalues": [2.0, 0.5], "residuals": [0.0, 0.0], "smallest": 0.1, "dimension": 9}
RESCALED = {"preconditioned": 2.0, "preconditioned_residual": 0.0, "stability": 0.1, "oscillation_limit": 0.5}


def curved(
    folder: Path, optimizer: str = "SGD", *, rates: tuple[float, ...] = (0.1,) * 4, at: int = 2, **estimate: Any
) -> RunWriter:
    """A run being written with one estimate of its curvature, after update `at`."""
    writer = RunWriter(folder, {"name": folder.name, "optimizer": optimizer, "hyperparameters": [{"lr": rates[0]}]})
    for step, rate in enumerate(rates, 1):
        writer.append("scalars", step, {"loss": 1.0, "lr": rate, "grad_norm": 1.0})
    estimated(writer, at, **estimate)
    writer.flush()
    return writer


def estimated(writer: RunWriter, step: int, **estimate: Any) -> None:
    writer.append("curvature", step, ESTIMATE | RESCALED | estimate)


def test_rmsprop_sees_the_rescaled_curvature(tmp_path, monkeypatch):
    """On the Hessian itself this rate would be fifty times too large, on what RMSprop sees of it half the largest."""
    curved(tmp_path / "run", "RMSprop", eigenvalues=[1000.0, 1.0], preconditioned=10.0).close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="run")
    assert app.segmented_control(key="optimizer").value == "RMSprop"
    assert "Stable" in app.title[0].value and app.metric[0].value == "1" and "RMSprop rescales" in texts(app)


def test_an_optimizer_that_is_not_offered_is_said_not_to_be(tmp_path, monkeypatch):
    curved(tmp_path / "run", "Lion").close("finished")
    assert "Lion is not among these; shown is gradient descent" in texts(
        opened("whatif", tmp_path, monkeypatch, run="run")
    )


def test_the_rate_is_that_of_the_update_whose_curvature_is_shown(tmp_path, monkeypatch):
    """The run decayed it to nothing afterwards."""
    curved(tmp_path / "run", rates=(0.1, 0.2, 0.01, 0.0)).close("finished")
    assert opened("whatif", tmp_path, monkeypatch, run="run").select_slider(key="eta").value == "0.2"


@pytest.mark.parametrize("top", [math.inf, math.nan])
def test_a_curvature_that_is_not_finite_is_no_curvature(top, tmp_path, monkeypatch):
    curved(tmp_path / "run", eigenvalues=[top, 1.0]).close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="run")
    assert not app.exception and "Curvature was not measured" in app.info[0].value


def test_rescaled_curvature_that_was_not_measured_is_not_shown(tmp_path, monkeypatch):
    curved(tmp_path / "run", "Adam", preconditioned=math.nan).close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="run")
    assert not app.exception and "that Adam sees was not measured" in app.info[0].value


def test_a_direction_whose_step_is_lost_in_rounding_does_not_move():
    found = pd.DataFrame({"fate": ["decays", "decays"], "steps": [3.2, math.inf]})
    assert judgement.pace(found) == "the slowest measured direction does not move"
    assert judgement.pace(found[:1]).endswith("the only one measured, shrinks tenfold in 4 steps")


def test_swinging_is_told_and_steps_have_three_digits():
    found = pd.DataFrame({"fate": ["oscillates", "decays"], "steps": [4602.2, 1530826.4]})
    assert judgement.pace(found).endswith("shrinks tenfold in 1.53e+06 steps; the steepest swings")
    found = found.assign(fate="oscillates", steps=[12.0, 4602.2])
    assert judgement.pace(found) == "every measured direction swings, and the slowest shrinks tenfold in 4,600 steps"


def test_a_rate_past_the_limit_at_an_earlier_step_is_not_called_stable(tmp_path, monkeypatch):
    """Gradient descent at 0.1: the limit is 1 after update 3, and was 2 / 50 = 0.04 after update 2."""
    writer = curved(tmp_path / "run", at=2, eigenvalues=[50.0, 0.5], preconditioned=50.0)
    estimated(writer, 3)
    writer.close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="run")
    assert app.title[0].value == "Within the limit at step 3, but 2.5 times the largest stable rate at step 2"
    app.select_slider(key="estimate").set_value(2).run()
    assert app.title[0].value == "Unstable for the curvature at step 2: the rate is 2.5 times the largest stable one"
    assert app.metric[3].value == "0.04" and not app.exception
    app.select_slider(key="estimate").set_value(3).run()  # best for 2 and 0.1: 2 / 2.1
    assert "Best for step 3 alone: with gradient descent, a rate of 0.952 is 23.8 times" in texts(app)
    slider = app.select_slider(key="eta")
    slider.set_value(min(slider.options, key=lambda text: abs(float(text) - 0.03))).run()
    assert app.title[0].value.startswith("Stable at all 2 estimates")


def test_a_quick_estimate_counts_for_the_limit_of_the_runs_own_optimizer(tmp_path, monkeypatch):
    writer = curved(tmp_path / "run", at=2)
    quick = {"eigenvalues": [], "residuals": [], "smallest": math.nan, "preconditioned": 80.0}
    estimated(writer, 3, **quick)
    writer.close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="run")
    assert app.title[0].value == "Within the limit at step 2, but 4 times the largest stable rate at step 3"


def test_a_direction_of_negative_curvature_grows_and_no_page_ticks_it_off(tmp_path, monkeypatch):
    """At rate 0.1 a curvature of -1.5 grows by 1.15 a step: tenfold in ln 10 / ln 1.15 = 16.5."""
    curved(tmp_path / "run", smallest=-1.5, smallest_residual=0.1).close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="run")
    assert "Stable" not in app.title[0].value and "negative curvature grows" in app.title[0].value
    assert "a direction of curvature -1.5 grows tenfold in 17 steps" in texts(app)
    app = opened("curvature", tmp_path, monkeypatch, run="run")
    assert "✓" not in app.title[0].value and "a direction of curvature -1.5 grows" in texts(app)


@pytest.mark.parametrize(("smallest", "residual"), [(2e-7, 1e-4), (-2e-7, 1e-4), (1e-8, 0.0), (-1e-8, 0.0)])
def test_a_curvature_within_its_error_is_in_no_headline(smallest, residual, tmp_path, monkeypatch):
    """Its own residual, or the rounding of the largest: 2 * 1.2e-7. The slowest then is 0.5: 0.95^45 = 0.1."""
    curved(tmp_path / "run", smallest=smallest, smallest_residual=residual).close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="run")
    assert app.title[0].value.endswith("the slowest measured direction shrinks tenfold in 45 steps")
    assert app.dataframe[0].value["fate"].tolist()[-1] == "○ flat within the error"
    assert "grows:" not in texts(opened("curvature", tmp_path, monkeypatch, run="run"))


@pytest.mark.parametrize("page", ["curvature", "whatif"])
@pytest.mark.parametrize("id", ["lr-unstable", "momentum-too-high", "saddle-point-near-zero", "cliff-recurrent"])
def test_the_diagnosis_stands_above_and_no_tick_contradicts_it(page, id, tmp_path, monkeypatch):
    app = opened(page, tmp_path, monkeypatch, run=f"sample/{id}")
    (link,) = [each.proto for each in app.get("page_link") if "diagnosis" in each.proto.label]
    assert link.page == "diagnosis" and id in link.query_string and "✓" not in texts(app)
    assert app.markdown[0].value == opened("diagnosis", tmp_path, monkeypatch, run=f"sample/{id}").title[0].value


@pytest.mark.parametrize("page", ["curvature", "whatif"])
@pytest.mark.parametrize(
    ("unclipped", "reason"), [(0.4, "shortened the gradient of step 2 from 0.4 to 0.1"), (0.1, "a fault only where")]
)
def test_a_ratio_above_1_without_an_alarm_has_its_reason(page, unclipped, reason, tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "run", {"name": "run", "optimizer": "SGD", "hyperparameters": [{"lr": 2.0}]})
    for step in (1, 2):
        norms = {"grad_norm": 0.1, "grad_norm_unclipped": unclipped}
        writer.append("scalars", step, {"loss": 1.0, "lr": 2.0, **norms})
    estimated(writer, 2, stability=2.0)
    writer.close("finished")
    app = opened(page, tmp_path, monkeypatch, run="run")
    assert "2 times the largest stable one" in app.title[0].value and reason in texts(app)


def test_with_momentum_the_page_calls_swinging_what_swings(tmp_path, monkeypatch):
    """(1 - sqrt 0.9)^2 / 3.8 = 7e-4: s = 0.1 is far above it, and far below gradient descent's half."""
    writer = RunWriter(tmp_path / "run", {"name": "run", "hyperparameters": [{"lr": 0.1, "momentum": 0.9}]})
    writer.append("scalars", 1, {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0})
    estimated(writer, 1)
    writer.close("finished")
    app = opened("curvature", tmp_path, monkeypatch, run="run")
    assert app.title[0].value.endswith("the steepest direction oscillates") and "from s = 0.000693 on" in texts(app)


def test_another_run_begins_where_it_stood(tmp_path, monkeypatch):
    """With an address that names what was chosen for the first one."""
    curved(tmp_path / "a").close("finished")
    curved(tmp_path / "b", "Adam", rates=(0.3,) * 4, at=4).close("finished")
    app = opened("whatif", tmp_path, monkeypatch, run="a", optimizer="momentum", mu="0.5")
    assert (app.segmented_control(key="optimizer").value, app.select_slider(key="mu").value) == ("momentum", 0.5)
    for id, optimizer, eta in (("b", "Adam", "0.3"), ("a", "gradient descent", "0.1")):
        app.selectbox(key="picked").set_value(id).run()
        chosen = app.segmented_control(key="optimizer").value, app.select_slider(key="eta").value
        assert chosen == (optimizer, eta) and not app.exception and not app.warning
    app.select_slider(key="eta").set_value(app.select_slider(key="eta").options[0]).run()
    assert app.select_slider(key="eta").value == app.select_slider(key="eta").options[0]


def test_the_spectrum_shown_follows_a_run_that_trains(tmp_path, monkeypatch):
    writer = curved(tmp_path / "live", at=2)
    curved(tmp_path / "other", at=1).close("finished")
    app = opened("curvature", tmp_path, monkeypatch, run="live")
    for step, kept in ((3, None), (4, 2)):
        estimated(writer, step)
        writer.flush()
        if kept:
            app.select_slider(key="spectrum").set_value(kept).run()
        assert app.run().select_slider(key="spectrum").value == (kept or step)
    writer.close("finished")
    app.selectbox(key="picked").set_value("other").run()
    assert app.select_slider(key="spectrum").value == 1 and not app.exception and not app.warning
