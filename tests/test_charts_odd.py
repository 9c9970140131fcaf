"""Charts of names and numbers that no axis was made for: nothing false is drawn, and nothing is left out unsaid."""

import json

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert

from diagnostics.charts import compare, factors, heatmap, parts, reduce
from diagnostics.charts.dynamics import Optimizer
from diagnostics.run import Run


def compiled(chart) -> dict:
    """The specification, after Vega-Lite has accepted it and Vega has parsed its expressions."""
    spec = chart.to_dict()
    vl_convert.vegalite_to_svg(spec)
    return spec


@pytest.mark.parametrize("name", ["two\nlines", "a\u2028b", "x'] + alert(1) + ['\\", '"] + alert(1) + ["'])
def test_any_name_of_a_layer_is_a_label(name):
    axis = heatmap.row_axis([name])
    point = alt.Chart(pd.DataFrame({"row": [0]})).mark_point().encode(y=axis)
    label = compiled(parts.layer([point], "t"))["layer"][0]["encoding"]["y"]["axis"]["labelExpr"]
    assert label.isascii() and json.loads(label.removesuffix("[floor(datum.value)]")) == [name]


def test_a_module_without_a_type_is_compared_all_the_same():
    run = Run.from_frames({"name": "m", "modules": [{"name": "0"}, {"name": "1", "type": "ReLU"}]}, {})
    assert compare.flattened(run)["modules"] == "?, ReLU"


@pytest.mark.parametrize("name", ["gradient descent", "momentum", "Nesterov", "Adam"])
def test_a_direction_too_flat_to_be_left_does_not_diverge(name):
    found = factors.fates(Optimizer(name, 1e-3, 0.9), np.array([1e-15, 2e-17]))
    assert "diverges" not in set(found["fate"]) and (found["steps"] > 1e9).all()


@pytest.mark.parametrize("window", [2, 3, 10, 50, 1000])
def test_a_smoothed_line_forgets_a_huge_value_behind_its_window(window):
    values = np.random.default_rng(0).uniform(1, 2, 300)
    values[20], values[100] = 1e18, np.nan
    around = [values[max(0, i - window // 2) : i + window // 2 + 1] for i in range(300)]
    np.testing.assert_allclose(reduce.smooth(values, window), [np.nanmean(part) for part in around], rtol=1e-12)
