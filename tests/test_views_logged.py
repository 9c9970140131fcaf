"""What a script gives to `monitor.log` is seen: on its run's page, beside other runs, and in the report."""

import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from diagnostics.charts import compare, logged
from diagnostics.run import Run, load
from diagnostics.views import report
from tests.test_views_pages import opened, train

SCALARS = pd.DataFrame({"step": range(1, 401), "loss": 1.0, "lr": 0.1, "grad_norm": 1.0})


def run_with(**numbers) -> Run:
    """Numbers logged at every hundredth update, each by a call of its own."""
    rows = [{"step": 100 * i, name: v} for name, values in numbers.items() for i, v in enumerate(values, 1)]
    return Run.from_frames({"name": "r", "optimizer": "SGD"}, {"scalars": SCALARS, "logged": pd.DataFrame(rows)})


def marks(drawn) -> list[dict]:
    return [layer["mark"] for layer in drawn.to_dict()["layer"]]


def drawn_values(drawn) -> list[float]:
    spec = drawn.to_dict()
    line = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")
    return [row["value"] for row in spec["datasets"][line["data"]["name"]]]


def scale(drawn) -> str:
    line = next(layer for layer in drawn.to_dict()["layer"] if layer["mark"]["type"] == "line")
    return line["encoding"]["y"]["scale"].get("type", "linear")


def test_a_number_logged_once_an_epoch_is_drawn_with_points_over_the_whole_run():
    drawn = logged.logged(run_with(accuracy=[0.3, 0.7, 0.9], epoch=[0, 1, 2]), "accuracy")
    assert drawn_values(drawn) == [0.3, 0.7, 0.9]
    assert next(mark for mark in marks(drawn) if mark["type"] == "line")["point"]
    steps = [row["step"] for rows in drawn.to_dict()["datasets"].values() for row in rows]
    assert (min(steps), max(steps)) == (1, 400)


@pytest.mark.parametrize(("values", "kind"), [([0.02, 0.5, 0.97], "linear"), ([5.0, 0.1, 0.01], "log")])
@pytest.mark.every_case
def test_the_axis_is_logarithmic_beyond_two_decades(values, kind):
    run = run_with(number=values)
    assert scale(logged.logged(run, "number")) == kind
    assert scale(compare.overlaid({"a": run, "b": run}, "logged", "number", "T")) == kind


def test_a_logged_number_that_is_not_finite_is_marked_and_a_call_without_it_is_not():
    run = run_with(loss=[1.0, np.inf, 2.0], accuracy=[0.1, 0.2, 0.3])
    assert '"✕' in json.dumps(logged.logged(run, "loss").to_dict(), ensure_ascii=False)
    assert '"✕' not in json.dumps(logged.logged(run, "accuracy").to_dict(), ensure_ascii=False)
    assert "NaN or infinite" in json.dumps(logged.logged(run_with(loss=[np.inf]), "loss").to_dict())


def test_a_run_keeps_its_colour_where_another_did_not_log():
    """The second of two runs is drawn in the second colour also where it is alone, and named."""
    with_it, without = run_with(accuracy=[0.1, 0.2]), run_with(other=[1.0, 2.0])
    spec = compare.overlaid({"a": without, "b": with_it}, "logged", "accuracy", "T").to_dict()
    colour = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")["encoding"]["color"]
    assert colour["scale"]["domain"] == ["a", "b"] and colour["legend"]["values"] == ["b"]
    steps = [row["step"] for rows in spec["datasets"].values() for row in rows]
    assert (min(steps), max(steps)) == (1, 400)  # as in every other chart of the page


def test_the_pages_show_what_was_logged_and_nothing_where_nothing_was(tmp_path, monkeypatch):
    train(tmp_path / "plain").close("finished")
    writer = train(tmp_path / "logging")
    for step in (10, 20):
        writer.log(step, {"accuracy": step / 40, "loss": 1.0})
    writer.close("finished")
    plain = opened("training", tmp_path, monkeypatch, run="plain").get("vega_lite_chart")
    shown = opened("training", tmp_path, monkeypatch, run="logging").get("vega_lite_chart")
    assert len(shown) == len(plain) + 2
    assert {chart.proto.alt for chart in shown} >= {"accuracy (logged) over updates", "loss (logged) over updates"}
    pair = opened("compare", tmp_path, monkeypatch, a="plain", b="logging")
    titles = [json.loads(chart.proto.spec)["title"]["text"] for chart in pair.get("vega_lite_chart")]
    assert "accuracy (logged)" in titles and "Loss" in titles
    page = report.page(load(tmp_path / "logging"))
    assert "accuracy (logged)" in unescape(re.sub(r"<[^>]+>", "", page))
    assert report.page(load(tmp_path / "plain")).count("<svg ") == page.count("<svg ") - 2


def test_of_many_logged_numbers_the_first_are_shown_and_the_rest_offered(tmp_path, monkeypatch):
    writer = train(tmp_path / "run")
    writer.log(10, {f"number {i}": float(i) for i in range(9)})
    writer.close("finished")
    app = opened("training", tmp_path, monkeypatch, run="run")
    assert len(app.multiselect[0].options) == 9 and len(app.get("vega_lite_chart")) == 1 + 6
