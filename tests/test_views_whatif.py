"""What if: it starts where the run stood, and claims nothing of an optimizer that it does not know."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from diagnostics.run import RunWriter
from diagnostics.views import whatif
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
    assert whatif.pace(found) == "does not move" and whatif.pace(found[:1]) == "shrinks tenfold in 4 steps"


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
