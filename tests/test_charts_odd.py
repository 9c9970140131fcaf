"""Charts of names and numbers that no axis was made for: nothing false is drawn, and nothing is left out unsaid."""

import json

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert

from diagnostics import charts
from diagnostics.charts import compare, factors, heatmap, lines, parts, reduce, timeline
from diagnostics.charts.dynamics import Optimizer
from diagnostics.charts.timeline_data import datasets
from diagnostics.rules import Chart
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


def run_of(**tables) -> Run:
    return Run.from_frames({"name": "r"}, {name: pd.DataFrame(columns) for name, columns in tables.items()})


def marked(run: Run) -> list[tuple[str, int, int]]:
    """Panel, first and last update of each red stretch: of the timeline, which a chart of a finding must equal."""
    rows = datasets(run, (), None, 1)["bad"]
    for column, panel in (("loss", "loss"), ("grad_norm", "norms")):
        drawn = compiled(lines.lines(run, Chart("line", "scalars", (column,), "T")))
        notes = {row["note"].lower() for part in drawn["datasets"].values() for row in part if "note" in row}
        same = {note.lower().replace("gradient norm", "grad_norm") for note in rows[rows["panel"] == panel]["note"]}
        assert notes == same or "not recorded" in str(notes)
    return list(zip(rows["panel"], rows["step"].astype(int), rows["until"].astype(int) - 1, strict=True))


def holes(length: int, at: list[int]) -> np.ndarray:
    """Ones, but NaN at these steps, which count from 1."""
    return np.where(np.isin(np.arange(1, length + 1), at), np.nan, 1.0)


def test_what_was_never_measured_is_not_marked():
    scalars = {"step": np.arange(1, 51), "loss": holes(50, [30])}
    assert marked(run_of(scalars=scalars | {"grad_norm": np.nan})) == [("loss", 30, 30)]


def test_skipped_updates_and_losses_that_were_not_told_are_not_marked():
    scalars = {"step": np.arange(1, 51), "loss": holes(50, [10, 20]), "grad_norm": holes(50, [20, 30, 40])}
    events = {"step": [10, 30], "kind": ["step-missing", "skipped-step"], "message": "", "subject": ""}
    assert marked(run_of(scalars=scalars, events=events)) == [("loss", 20, 20), ("norms", 20, 20), ("norms", 40, 40)]


def test_marks_reach_to_the_last_value_that_is_not_finite():
    """Every other update of a long run: more stretches than a chart is wide."""
    steps = np.arange(1, 10_001)
    found = marked(run_of(scalars={"step": steps, "loss": np.where(steps % 2, 1.0, np.nan), "grad_norm": np.nan}))
    assert found == [("loss", 2, 10_000)]
    apart = np.where(steps % 100, 1.0, np.nan)
    found = marked(run_of(scalars={"step": steps, "loss": apart, "grad_norm": apart}))
    assert [last for _, _, last in found] == 2 * list(range(100, 10_001, 100))


def test_a_stretch_that_has_room_for_words_says_that_it_is_not_finite():
    steps, values = np.arange(1, 101), np.ones(100)
    values[9] = values[60:] = np.nan
    drawn = alt.layer(*parts.non_finite_layers(steps, values, parts.step_axis(), "Loss"))
    assert [row["sign"] for rows in compiled(drawn)["datasets"].values() for row in rows] == ["✕", "✕ not finite"]


STEPS = np.arange(1, 101)
DEAD = np.where(STEPS > 60, 0.0, np.exp(-STEPS / 10))


def drawn(values: np.ndarray) -> tuple[list[dict], str]:
    """Rows of the line of a chart that would be logarithmic, and its picture."""
    spec = compiled(lines.draw_lines({"grad_norm": (STEPS, values)}, "T", log=True))
    line = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")
    return spec["datasets"][line["data"]["name"]], vl_convert.vegalite_to_svg(spec)


def test_negative_values_are_drawn_with_the_others():
    rows, _ = drawn(np.linspace(50, -8, 100))
    assert len(rows) == 100


def test_a_gradient_that_is_exactly_zero_is_marked_where_a_log_axis_has_no_place_for_it():
    rows, picture = drawn(DEAD)
    assert len(rows) == 60 and picture.count("grad_norm is exactly 0") == 40


def test_the_timeline_marks_zeros_on_its_log_axes():
    run = run_of(scalars={"step": STEPS, "loss": np.exp(-STEPS / 20), "grad_norm": DEAD, "lr": 0.1})
    rows = {name: frame.to_dict("records") for name, frame in datasets(run, (), None, 1).items()}
    picture = vl_convert.vegalite_to_svg({**timeline.specification(timeline.Options()), "datasets": rows})
    assert picture.count("gradient norm is exactly 0") == 40


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("every", [1, 10])
def test_no_measured_update_is_lost_where_spacings_are_uneven(low, every):
    """Dense at first and sparse later: three hundred updates share a column of the picture, or several do."""
    steps = np.concatenate([np.arange(0, 300 * every, every), 300 * every + np.arange(1, 201) * 1000])
    for spike in (17, 299, 400):
        values = np.ones((len(steps), 1))
        values[spike] = 1e-9 if low else 1e9
        picture = heatmap.on_even_steps(heatmap.Field("g", steps, ["a"], values, worst_is_low=low))
        assert np.isin(values[spike], picture)
        shown = np.linspace(steps[0], 2 * steps[-1] - steps[-2], len(picture), endpoint=False)[picture[:, 0] != 1]
        assert shown[0] <= steps[spike] and shown[-1] + 2000 >= steps[spike]


@pytest.mark.parametrize("low", [True, False])
def test_an_infinity_shows_wherever_it_lies_in_its_bin(low):
    values = np.ones((1000, 2))
    values[500, 1], values[700:710] = np.inf, np.nan
    _, found = reduce.bin_columns(np.arange(1000), values, 100, low)
    assert np.isinf(found).sum() == 1 and np.isinf(found[50, 1]) and np.isnan(found[70]).all()


def test_of_many_estimates_the_worst_are_drawn_and_the_title_says_so():
    steps = np.arange(1, 20_001)
    noise = np.random.default_rng(0).uniform(1, 2, len(steps))
    top, ratio, smallest = noise.copy(), noise.copy(), -noise
    top[1234], ratio[5678], smallest[9012] = 50, 60, -70
    curvature = {"eigenvalues": [[value, 0.5, 0.1] for value in top], "residuals": [[0.1, 0.1, 0.1]] * len(steps)}
    columns = {"stability": ratio, "oscillation_limit": 0.5, "preconditioned": top, "preconditioned_residual": 0.1}
    curvature |= {"step": steps, "smallest": smallest, "smallest_residual": 0.1, "limit": 4.0, **columns}
    run = run_of(curvature=curvature, scalars={"step": steps, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1})
    for mark, extremes in (("stability", {60}), ("spectrum", {50, -70})):
        spec = compiled(charts.draw(run, Chart(mark, "curvature", ("stability",), "T")))
        rows = [row for part in spec["datasets"].values() for row in part]
        assert len(rows) < 5000 and extremes <= {row.get("value", row.get("stability")) for row in rows}
        assert "the worst" in spec["title"]["text"]
    rates = datasets(run, (), None, 1)["lr"]
    limits = rates[rates["name"] == "largest stable rate"]["value"]
    assert len(limits) <= reduce.BUCKETS + 1 and limits.min() == pytest.approx(0.1 / 60)


@pytest.mark.parametrize(
    ("lasted", "told", "shown"),
    [
        (64, True, 80),  # a quarter more
        (4, True, 14),
        (900, True, 2000),  # most of the run
        (64, False, 2000),  # nobody told a loss
        (2000, True, 2000),
    ],
)
@pytest.mark.parametrize("mark", ["line", "stability"])
def test_a_run_that_went_on_without_a_finite_loss_is_shown_to_there(lasted, told, shown, mark):
    steps = np.arange(1, 2001)
    scalars = {"step": steps, "loss": np.where(steps <= lasted, 1.0 + 0.1 * steps, np.nan), "grad_norm": 1.0}
    events = {"step": [] if told else steps[lasted:], "kind": "step-missing", "message": "", "subject": ""}
    curvature = {"step": [3, 1900], "eigenvalues": [[1.0]] * 2, "stability": 0.5, "preconditioned": 1.0}
    run = run_of(scalars=scalars, events=events, curvature=curvature | {"preconditioned_residual": 0.0})
    chart = Chart(mark, "scalars", ("loss",), "T")
    spec = compiled(charts.draw(run, chart))
    ends = [row["step"] for rows in spec["datasets"].values() for row in rows if "step" in row]
    assert shown <= max(ends) <= shown + 1
    assert spec["title"]["text"] == ("T" if shown == 2000 else f"T, to step {shown}")


@pytest.mark.parametrize(
    ("loss", "events", "says"),
    [
        (np.nan, {"step": [1], "kind": ["non-finite"], "message": ["x"]}, "loss: NaN at every update, 30 of 30"),
        (np.nan, {}, "loss: not recorded in this run"),
        (None, {"step": [0], "kind": ["damaged"], "subject": ["scalars-0000.arrows"]}, "lost, scalars-0000.arrows is"),
    ],
)
def test_a_chart_without_a_number_says_which_kind_of_none(loss, events, says):
    """All NaN is something else than not recorded, and both than lost."""
    steps = np.arange(1, 31) if loss is not None else np.arange(0)
    scalars = pd.DataFrame({"step": steps, "loss": np.full(len(steps), np.nan), "grad_norm": np.ones(len(steps))})
    run = Run.from_frames({}, {"scalars": scalars, "events": pd.DataFrame(events)} if events else {"scalars": scalars})
    chart = charts.draw(run, Chart("line", "scalars", ("loss",), "Loss", log=True), None)
    assert says in str(chart.to_dict())
