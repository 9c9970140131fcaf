"""Charts by the data and the specification they return; Vega-Lite itself compiles every one of them."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diagnostics import charts
from diagnostics.charts import compare, heatmap, layers, lines, reduce, spectrum, stability, theme, timeline
from diagnostics.charts.timeline_data import datasets
from diagnostics.rules import Chart, Finding, diagnose
from diagnostics.run import Run, runs
from diagnostics.views.data import SAMPLES

RECORDED = {str(run.meta["name"]): run for run in runs(SAMPLES)}
LOSS = Chart("line", "scalars", ("loss",), "Loss", log=True)
SPECTRUM = Chart("spectrum", "curvature", ("eigenvalues",), "Eigenvalues")
STABILITY = Chart("stability", "curvature", ("stability",), "Stability")


def compiled(chart) -> dict:
    """The specification, after Vega-Lite has accepted it: the browser would only show an empty space."""
    spec = chart.to_dict()
    vl_convert.vegalite_to_vega(spec)
    return spec


def finding(first: int, last: int | None = None, severity: str = "critical") -> Finding:
    return Finding("lr-unstable", None, severity, first, last, (), "It grows.", {}, ())  # pyright: ignore[reportArgumentType]


def scalars(loss: np.ndarray, **columns) -> Run:
    steps = np.arange(1, len(loss) + 1)
    return Run.from_frames({"name": "r"}, {"scalars": pd.DataFrame({"step": steps, "loss": loss, **columns})})


@pytest.mark.parametrize("name", RECORDED)
def test_every_chart_of_every_finding_of_a_sample_run_compiles(name):
    run = RECORDED[name]
    for found in diagnose(run).findings:
        for chart in found.charts:
            compiled(charts.draw(run, chart, found))


@pytest.mark.parametrize("mark", charts.MARKS)
def test_a_run_without_measurements_says_so_in_every_chart(mark):
    table = {"stability": "curvature", "spectrum": "curvature", "inputs": "inputs", "heatmap": "layers"}
    column = {"heatmap": "grad_norm", "inputs": "mean", "line": "loss"}.get(mark, "stability")
    chart = Chart(mark, table.get(mark, "scalars"), (column,), "T")
    spec = compiled(charts.draw(Run.from_frames({"name": "empty"}, {}), chart))
    assert "not" in str(spec["datasets"])


def test_the_span_of_a_finding_is_shaded_from_its_first_step_to_its_last():
    spec = compiled(charts.draw(scalars(np.linspace(2, 1, 100)), LOSS, finding(40, 60)))
    rows = [row for rows in spec["datasets"].values() for row in rows if "until" in row]
    assert (rows[0]["step"], rows[0]["until"], rows[0]["label"]) == (40, 60, "▲ step 40 to 60")


def test_a_lasting_finding_is_shaded_to_the_end():
    spec = compiled(charts.draw(scalars(np.linspace(2, 1, 100)), LOSS, finding(40)))
    rows = [row for rows in spec["datasets"].values() for row in rows if "until" in row]
    assert rows[0]["until"] == 100


def test_values_that_are_not_finite_are_marked_where_they_are():
    loss = np.ones(50)
    loss[20:25] = np.nan
    loss[40] = np.inf
    spec = compiled(charts.draw(scalars(loss), LOSS))
    notes = [row["note"] for rows in spec["datasets"].values() for row in rows if "note" in row]
    assert [note.partition("step ")[2] for note in notes[:2]] == ["21 to 25", "41 to 41"]


def domain_of(values):
    drawn = lines.draw_lines({"grad_norm": (np.arange(len(values)), np.asarray(values, float))}, "Norm", log=True)
    line = next(each for each in drawn.to_dict()["layer"] if each["mark"]["type"] == "line")
    return line["encoding"]["y"]["scale"].get("domain")


@pytest.mark.parametrize("level", [1.0, 0.37, -4e4])
def test_values_that_hardly_differ_are_not_stretched_over_ticks_that_read_alike(level):
    assert domain_of(level * (1 + 1e-7 * (np.arange(50) % 3))) == pytest.approx(sorted([0.9 * level, 1.1 * level]))
    assert domain_of([level, np.nan, level]) is not None
    assert domain_of(level * (1 + 1e-3 * np.arange(50))) is None
    assert domain_of(np.zeros(5)) is None


@given(st.integers(1, 30_000), st.integers(0, 2**32 - 1))
def test_thinning_keeps_both_extremes_and_never_sends_more_than_two_points_a_bucket(length, seed):
    values = np.random.default_rng(seed).standard_normal(length)
    steps, kept = reduce.thin(np.arange(length), values)
    assert kept.min() == values.min() and kept.max() == values.max()
    assert len(kept) <= 2 * reduce.BUCKETS and (np.diff(steps) >= 0).all()


def test_a_spike_of_one_step_in_a_million_survives():
    values = np.ones(1_000_000)
    values[654_321] = 7.0
    _, kept = reduce.thin(np.arange(len(values)), values)
    assert kept.max() == 7.0


def test_zooming_shows_every_recorded_value():
    values = np.random.default_rng(0).standard_normal(100_000)
    steps, kept = reduce.thin(np.arange(100_000), values, 5_000, 6_000)
    np.testing.assert_array_equal(steps, np.arange(5_000, 6_001))
    np.testing.assert_array_equal(kept, values[5_000:6_001])


def test_smoothing_is_a_centred_mean_of_finite_values():
    np.testing.assert_allclose(reduce.smooth(np.array([1.0, 2, np.nan, 4, 5]), 3), [1.5, 1.5, 3, 4.5, 4.5])


def curvature(**columns) -> Run:
    steps = np.arange(1, 1 + len(columns["stability"]))
    frame = pd.DataFrame(
        {"step": steps, "eigenvalues": [[3.0, 1.0]] * len(steps), "residuals": [[0.3, 0.1]] * len(steps)}
    )
    frame = frame.assign(
        smallest=-0.5, smallest_residual=0.05, preconditioned=3.0, preconditioned_residual=0.3, limit=4.0
    )
    return Run.from_frames(
        {"name": "c"},
        {
            "curvature": frame.assign(**columns),
            "scalars": pd.DataFrame({"step": steps, "loss": 1.0, "lr": 0.5, "grad_norm": 1.0}),
        },
    )


def test_the_bands_lie_where_this_optimizer_decays_oscillates_and_diverges():
    run = curvature(stability=[0.75, 1.5], oscillation_limit=[0.74, 0.74])
    spec = compiled(charts.draw(run, STABILITY))
    bands = [row for rows in spec["datasets"].values() for row in rows if "band" in row]
    edges = {row["band"]: (row["stability"], row["top"]) for row in bands}
    assert edges["decays"][1] == edges["oscillates"][0] == 0.74
    assert edges["oscillates"][1] == edges["unstable"][0] == 1.0


@pytest.mark.parametrize(
    ("settings", "border"),
    [
        ({"momentum": 0.9}, (1 - 0.9**0.5) ** 2 / 3.8),
        ({"momentum": 0.9, "nesterov": True}, (0.1 / 1.9) ** 2 * 2.8 / 3.8),
        ({"betas": [0.9, 0.999]}, (1 - 0.9**0.5) ** 2 / 3.8),
        ({"momentum": 0}, 0.5),
    ],
)
def test_the_green_band_ends_where_this_optimizer_starts_to_swing(settings, border):
    run = curvature(stability=[1e-5, 0.4], oscillation_limit=[0.5, 0.5])
    run.meta["hyperparameters"] = [settings]
    bands = {row["band"]: row for row in rows_of(charts.draw(run, STABILITY)) if "band" in row}
    assert bands["decays"]["top"] == bands["oscillates"]["stability"] == pytest.approx(border)
    starts = [row["value"] for row in rows_of(charts.draw(run, SPECTRUM)) if row.get("name") == "oscillation starts"]
    assert starts[0] == pytest.approx(4.0 * border)


def test_groups_that_start_to_swing_apart_have_one_band_below_the_limit():
    run = curvature(stability=[0.3], oscillation_limit=[0.5])
    run.meta["hyperparameters"] = [{"momentum": 0.9}, {"momentum": 0.5}]
    assert {row["band"] for row in rows_of(charts.draw(run, STABILITY)) if "band" in row} == {"stable", "unstable"}


def rows_of(chart) -> list[dict]:
    return [row for rows in compiled(chart)["datasets"].values() for row in rows]


def test_a_small_stability_ratio_is_drawn_where_it_is_and_what_has_no_place_is_marked():
    run = curvature(stability=[4.3e-5, 9.3e-7, 1e-12, -0.0359, 1e7], oscillation_limit=[0.5] * 5)
    spec = compiled(charts.draw(run, STABILITY))
    line = next(rows for rows in spec["datasets"].values() if rows and "ratio" in rows[0])
    assert [row["stability"] for row in line] == [4.3e-5, 9.3e-7, None, None, None]
    marks = {
        layer["mark"]["shape"]: [row["shown"] for row in spec["datasets"][layer["data"]["name"]]]
        for layer in spec["layer"]
        if "triangle" in layer["mark"].get("shape", "")
    }
    assert marks == {"triangle-down": ["1e-12", "-0.0359"], "triangle-up": ["1e+07"]}
    low, high = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")["encoding"]["y"]["scale"][
        "domain"
    ]
    assert 1e-7 < low < 9.3e-7 and high < 10


def test_a_legend_names_only_what_is_drawn():
    def named(**columns) -> set[str]:
        run = curvature(stability=[0.75], oscillation_limit=[0.5], **columns)
        pictures = charts.draw(run, SPECTRUM), spectrum.at_step(run, 1)
        scales = [layer["encoding"]["color"]["scale"] for chart in pictures for layer in compiled(chart)["layer"]
                  if "color" in layer.get("encoding", {})]  # fmt: skip
        assert all(scale == scales[0] for scale in scales)
        return set(scales[0]["domain"])

    eigenvalues = {"λ₁", "λ₂, λ₃, …", "smallest"}
    empty = {"density_nodes": [[]], "density_weights": [[]]}
    assert named(**empty) == eigenvalues | {"stability limit", "oscillation starts"}
    assert named(preconditioned=[40.0], **empty) == eigenvalues


def test_the_stability_ratio_carries_the_residual_of_its_eigenvalue():
    data = stability.ratios(curvature(stability=[0.75], oscillation_limit=[0.5]))
    assert data["error"].iloc[0] == pytest.approx(0.075)  # residual 0.3 of an eigenvalue of 3 is a tenth


def test_eigenvalues_have_error_bars_of_one_residual():
    data = spectrum.eigenvalues(curvature(stability=[0.75], oscillation_limit=[0.5]).table("curvature"))
    first = data[data["rank"] == 1].iloc[0]
    assert (first["below"], first["value"], first["above"]) == pytest.approx((2.7, 3.0, 3.3))


def test_no_stability_limit_is_drawn_over_eigenvalues_of_another_matrix():
    """Adam's limit holds for the rescaled Hessian: beside the plain eigenvalues it would be wrong."""
    adam = curvature(stability=[0.75], oscillation_limit=[0.5], preconditioned=[40.0])
    assert not spectrum.comparable(adam.table("curvature"))
    assert spectrum.comparable(curvature(stability=[0.75], oscillation_limit=[0.5]).table("curvature"))


def test_the_largest_stable_rate_is_the_rate_over_the_ratio():
    run = curvature(stability=[0.25, 2.0], oscillation_limit=[0.5, 0.5])
    rates = datasets(run, (), None, 1)["lr"]
    limit = rates[rates["name"] == "largest stable rate"]["value"]
    np.testing.assert_allclose(limit, [2.0, 0.25])


def test_the_points_of_a_short_line_have_its_colour():
    svg = vl_convert.vegalite_to_svg(charts.draw(scalars(np.arange(3.0, 0.0, -1.0)), LOSS).to_dict())
    marks = [mark for mark in re.findall('<path aria-label="step[^>]*>', svg) if 'opacity="0"' not in mark]
    assert len(marks) == 4
    assert all(f'"{theme.CATEGORIES[0]}"' in mark for mark in marks)


def test_a_jump_of_the_learning_rate_stays_a_jump():
    lr = np.where(np.arange(5000) < 2500, 0.1, 0.01)
    run = scalars(np.ones(5000), lr=lr)
    rates = datasets(run, (), None, 1)["lr"]
    assert rates["step"].tolist() == [1, 2500, 2501, 5000]


@pytest.mark.parametrize("lanes", [0, 3])
@pytest.mark.parametrize("log", [True, False])
def test_the_timeline_compiles_with_its_data(lanes, log):
    run = RECORDED["lr-unstable-digits"]
    found = tuple(finding(i + 1) for i in range(lanes))
    options = timeline.Options(log_loss=log, smoothed=log, lanes=lanes, start=(3, 9) if log else None)
    spec = timeline.specification(options)
    data = datasets(run, found, (3, 9) if log else None, 5 if log else 1)
    rows = {name: frame.to_dict("records") for name, frame in data.items()}
    vl_convert.vegalite_to_vega({**spec, "datasets": rows})


def test_the_timeline_sends_as_much_for_a_million_steps_as_for_ten_thousand():
    def size(length: int) -> int:
        noise = np.random.default_rng(0).standard_normal(length) + 10
        run = scalars(noise, lr=np.full(length, 0.1), grad_norm=noise)
        return sum(frame.memory_usage(index=False, deep=False).sum() for frame in datasets(run, (), None, 1).values())

    assert size(1_000_000) <= 1.05 * size(10_000) < 500_000


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


def test_heat_map_colours_the_lowest_and_the_highest_value_and_leaves_gaps_open():
    values = np.array([[1.0, 10.0], [np.nan, 0.0], [100.0, np.inf]])
    found = pixels(heatmap.png(values, 1.0, 100.0, log=True))
    assert found.shape == (2, 3, 4)  # layers x steps
    assert tuple(found[0, 0, :3]) == (0x44, 0x01, 0x54) and tuple(found[0, 2, :3]) == (0xFD, 0xE7, 0x25)
    assert found[0, 1, 3] == 0  # never measured
    assert tuple(found[1, 1]) == (0, 0, 0, 255)  # exactly zero
    assert tuple(found[1, 2]) == (213, 94, 0, 255)  # infinite


def test_uneven_spacings_are_drawn_to_scale():
    steps, values = np.array([0, 10, 100]), np.array([[1.0], [2.0], [3.0]])
    even = heatmap.on_even_steps(heatmap.Field("g", steps, ["a"], values))[:, 0]
    assert (even == 1).mean() == pytest.approx(10 / 190, abs=0.01) and (even == 2).mean() == pytest.approx(
        90 / 190, abs=0.01
    )


def test_a_heat_map_of_a_large_run_keeps_the_worst_value_and_few_columns():
    values = np.ones((2000, 150), np.float32)
    values[1234, 77] = 1e-9
    field = heatmap.Field("g", np.arange(2000), [f"layer{i}" for i in range(150)], values, log=True, worst_is_low=True)
    spec = compiled(heatmap.draw_field(field, name="cell"))
    grid = next(rows for rows in spec["datasets"].values() if len(rows) > 1000)
    assert len(grid) <= heatmap.GRID * 150
    assert min(row["value"] for row in grid) == pytest.approx(1e-9)


def test_layers_stand_in_the_order_of_the_model():
    frame = pd.DataFrame({"step": 1, "layer": ["b", "z", "a"], "grad_norm": [1.0, 2.0, 3.0]})
    meta = {"name": "m", "layers": [{"name": "a"}, {"name": "b"}]}
    field = layers.field(Run.from_frames(meta, {"layers": frame}), layers.QUANTITIES["Gradient norm"])
    assert field is not None and field.names == ["a", "b", "z"]


def test_the_update_ratio_is_update_over_weight():
    frame = pd.DataFrame({"step": 1, "layer": ["a"], "update_norm": [0.5], "weight_norm": [2.0]})
    field = layers.field(Run.from_frames({"name": "m"}, {"layers": frame}), layers.QUANTITIES["Update ratio"])
    assert field is not None and field.values[0, 0] == pytest.approx(0.25)


def test_only_settings_that_differ_are_listed():
    slow = Run.from_frames({"name": "a", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}, {})
    fast = Run.from_frames({"name": "b", "optimizer": "SGD", "hyperparameters": [{"lr": 0.2, "momentum": 0}]}, {})
    assert compare.differences({"a": slow, "b": fast}) == {"lr": ["0.1", "0.2"]}


@pytest.mark.parametrize(
    ("measured", "words"), [(True, "No stability ratio is known for the steps of LBFGS"), (False, "pass closure=")]
)
def test_an_empty_stability_chart_says_why(measured, words):
    curvature = {"curvature": pd.DataFrame({"step": [2], "stability": [np.nan]})} if measured else {}
    run = Run.from_frames({"name": "r", "optimizer": "LBFGS"}, {"scalars": pd.DataFrame({"step": [1]}), **curvature})
    assert words in str(compiled(charts.draw(run, STABILITY)))


def test_a_heat_map_ends_where_the_run_does():
    """Measured at 350 and 375 of 380: the last column would reach to 400."""
    layer = pd.DataFrame({"step": [1, 350, 375], "layer": "a", "grad_norm": [1.0, 2.0, 3.0]})
    scalars = pd.DataFrame({"step": range(1, 381), "loss": 1.0})
    run = Run.from_frames({"name": "r"}, {"layers": layer, "scalars": scalars})
    chart = Chart("heatmap", "layers", ("grad_norm",), "T")
    rows = [row for rows in charts.draw(run, chart).to_dict()["datasets"].values() for row in rows]
    assert max(row.get("until", 0) for row in rows) == 380


def test_the_compared_stability_has_its_limit_drawn_and_clipping_is_seen():
    scalars = pd.DataFrame({"step": [1, 2], "loss": 1.0, "grad_norm": [1.0, 1.0], "grad_norm_unclipped": [1.0, 8.0]})
    ratios = pd.DataFrame({"step": [1, 2], "stability": [8.5, 1e-10]})
    run = Run.from_frames({"name": "r"}, {"scalars": scalars, "curvature": ratios})
    spec = compare.overlaid({"a": run, "b": run}, "curvature", "stability", "T").to_dict()
    rules = [layer for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    assert [spec["datasets"][rule["data"]["name"]] for rule in rules] == [[{"value": 1.0}]]
    values = [row["value"] for rows in spec["datasets"].values() for row in rows if row.get("value")]
    assert min(values) == stability.LOWEST  # as far down as the chart of one run goes
    assert compare.clips(run) and not compare.clips(run.until(1))
