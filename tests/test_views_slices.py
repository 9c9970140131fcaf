"""Slices of the loss as the Curvature page shows them: the picture's numbers, and the sentence beside it."""

import numpy as np
import pytest
import vl_convert

from diagnostics.charts import slices
from diagnostics.run import RunWriter, load
from diagnostics.views.curvature import what_the_step_did
from diagnostics.views.data import SAMPLES
from tests.test_views_pages import opened, texts


def row(slope: float, curvature: float, moved: float, loss: float = 1.0, bend: float = 0.0) -> dict:
    """loss + slope t + curvature t^2 / 2 + bend t^4."""
    offsets = np.array(sorted({-2.0, -1.0, 0.0, 1.0, 2.0, -moved}))
    losses = loss + slope * offsets + curvature * offsets**2 / 2 + bend * offsets**4
    columns = {"slope": slope, "curvature": curvature, "moved": moved}
    return {"direction": "gradient", "offsets": offsets.tolist(), "losses": losses.tolist(), **columns}


def test_least_squares_is_its_parabola_in_the_recorded_runs():
    for name in ("lr-fitting", "lr-oscillation"):
        for found in load(SAMPLES / name).table("slices").to_dict("records"):
            offsets = np.array(found["offsets"])
            np.testing.assert_allclose(found["losses"], slices.taylor(found, offsets), rtol=1e-3)


def test_the_picture_has_the_losses_the_parabola_and_the_two_ends_of_the_update():
    found = row(slope=1.0, curvature=2.0, moved=-0.5)
    chart = slices.along(found, "Loss along the gradient")
    spec = chart.to_dict()
    vl_convert.vegalite_to_vega(spec)
    data = [row_ for rows in spec["datasets"].values() for row_ in rows]
    assert {(r["t"], r["end"]) for r in data if "end" in r} == {(0.0, "landed"), (0.5, "the update began")}
    assert {r["t"] for r in data if r.get("line") == "measured"} == set(found["offsets"])


def test_a_loss_that_shoots_up_leaves_the_valley_in_sight():
    low, high = slices.heights(row(1.0, 2.0, -0.5), np.array([0.75, 1.75]), np.array([0.7, 1e9]))
    assert low < 0.7 and 1.75 < high < 10


def test_a_loss_that_drops_far_below_leaves_the_update_in_sight():
    """As recorded past a kink: the parabola is flat, and the measured loss falls by 12 beside it."""
    found = row(slope=-1e-3, curvature=2.6e-5, moved=-0.002, loss=290.4)
    low, high = slices.heights(found, np.array([290.4, 290.5]), np.array([290.8, 290.4, 278.4]))
    assert low < 278.4 and high > 290.8


@pytest.mark.parametrize(
    ("found", "words"),
    [
        # From t = 0.5 to 0, the floor at -0.5: half of the way.
        (row(1.0, 2.0, -0.5), "50 % of the way down"),
        # From -0.4, the floor at -0.25, to 0, which is higher.
        (row(1.0, 4.0, 0.4), "**higher** on the other side"),
        # From -0.6 past the floor at -0.25 to 0, which is lower.
        (row(1.0, 4.0, 0.6), "lower on the other side"),
        (row(1.0, -2.0, -0.25), "bends down"),
        (row(1.0, -2.0, 0.25), "uphill"),
        (row(1.0, 2.0, float("nan")), "was not kept"),
    ],
)
def test_the_sentence_says_what_the_step_did(found, words):
    assert words in what_the_step_did(found)


def test_an_unstable_run_is_seen_to_land_higher(tmp_path, monkeypatch):
    """Least squares at 2.5 / lambda_max: every update but the first few lands 1.5 times as far from the floor."""
    app = opened("curvature", tmp_path, monkeypatch, run="sample/lr-unstable", spectrum="60")
    assert not app.exception and texts(app).count("landed **higher** on the other side") == 2


def test_a_run_without_slices_says_why(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "old", {"name": "old"})
    writer.append("scalars", 1, {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0})
    writer.append("curvature", 1, {"eigenvalues": [2.0], "residuals": [0.0], "stability": 0.1})
    writer.close("finished")
    app = opened("curvature", tmp_path, monkeypatch, run="old")
    assert not app.exception and "No slice of the loss" in texts(app)
