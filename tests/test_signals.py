"""The statistics that rules decide by, against closed forms and simulated nulls."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _gradient_signal as gradient_signal
from diagnostics.rules import _limits as limits
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.rules import _stretches as stretches
from diagnostics.rules import dead_units, lr_too_small, ravine, saddle_point
from diagnostics.rules._growth import growth
from diagnostics.rules._noise_ball import _more_than_chance, too_far
from diagnostics.rules._ringing import _swings
from diagnostics.rules._rolling import lowest_median
from diagnostics.rules._words import number
from diagnostics.run import Run


def run_of(loss, **columns) -> Run:
    steps = np.arange(1, len(loss) + 1)
    frame = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, **columns})
    return Run.from_frames({"name": "test", "status": "finished"}, {"scalars": frame})


def test_step_noise_is_the_deviation_of_white_noise_whatever_the_slope():
    values = np.random.default_rng(0).normal(0, 0.3, 20_000) - 0.001 * np.arange(20_000)
    assert signals.step_noise(values) == pytest.approx(0.3, rel=0.03)


def test_trend_of_pure_noise_is_rarely_significant():
    rng = np.random.default_rng(1)
    z = np.array([signals.trend(rng.normal(size=100)).z for _ in range(2000)])
    assert z.std() == pytest.approx(1, abs=0.15)
    assert (np.abs(z) > 3).mean() < 0.01


def test_trend_sees_a_fall_of_a_tenth_of_the_noise_a_step():
    values = np.random.default_rng(2).normal(size=400) - 0.01 * np.arange(400)
    assert signals.trend(values).z > 5


def test_flat_stretch_before_a_late_drop_is_found_and_has_ended():
    loss = np.concatenate([np.full(120, 2.0), 2 * np.exp(-np.arange(80) / 10)])
    stretch = stretches.flat(run_of(loss + np.random.default_rng(3).normal(0, 0.01, 200)))
    assert stretch is not None and stretch.escaped
    assert stretch.first_step == 1 and 100 <= stretch.last_step <= 130


def test_a_steady_fall_is_not_flat():
    assert (
        stretches.flat(run_of(3 * 0.98 ** np.arange(200))) is None
        or stretches.flat(run_of(3 * 0.98 ** np.arange(200))).share < 0.5
    )


def test_loss_that_ends_in_nan_has_no_finite_end():
    assert signals.loss(run_of(np.r_[np.ones(30), np.full(10, np.nan)])).end == np.inf


@pytest.mark.parametrize(
    ("mean", "deviation", "cause"),
    [
        ([0.0, 0.0], [100.0, 0.003], "feature-scale"),
        ([1000.0, 1005.0], [2.0, 2.5], "uncentered-inputs"),
        ([184.0, 0.0026], [133.0, 0.0007], "feature-scale"),  # the lecture's first table
    ],
)
def test_spread_of_the_inputs_names_the_larger_cause(mean, deviation, cause):
    table = pd.DataFrame(
        {"step": 1, "feature": ["0", "1"], "mean": mean, "std": deviation, "condition": 1.0, "nonfinite": 0.0}
    )
    run = Run.from_frames({"name": "test", "status": "finished"}, {"inputs": table})
    spread = conditioning.spread(run)
    assert spread is not None and spread.cause == cause


def test_offset_condition_number_is_that_of_the_second_moment_matrix():
    """Equal features with a common offset: the largest eigenvalue of the second moments over the others."""
    mean, deviation = 50.0, 1.0
    table = pd.DataFrame(
        {"step": 1, "feature": ["0", "1"], "mean": mean, "std": deviation, "condition": 1.0, "nonfinite": 0.0}
    )
    spread = conditioning.spread(Run.from_frames({"name": "test", "status": "finished"}, {"inputs": table}))
    exact = np.linalg.eigvalsh(deviation**2 * np.eye(2) + mean**2 * np.ones((2, 2)))
    assert spread is not None and spread.offset == pytest.approx(exact[-1] / exact[0], rel=1e-6)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(("mean", "deviation"), [(50.0, 1.0), (3.0, 0.1), (20.0, 4.0)])
def test_a_bias_makes_the_condition_number_of_its_plane_with_the_mean(mean, deviation, optimizer):
    """The bias is the weight of a feature that is always 1."""
    table = pd.DataFrame(
        {"step": 1, "feature": ["0", "1"], "mean": mean, "std": deviation, "condition": 1.0, "nonfinite": 0.0}
    )
    layers = [{"name": name, "shape": [1, 2][-1 - (name == "weight") :]} for name in ("weight", "bias")]
    meta = {"name": "test", "status": "finished", "layers": layers, "optimizer": optimizer}
    spread = conditioning.spread(Run.from_frames(meta, {"inputs": table}))
    assert spread is not None
    moments = np.diag([0, deviation**2, deviation**2]) + np.outer([1, mean, mean], [1, mean, mean])
    exact = np.linalg.eigvalsh(moments)
    expected = exact[-1] / exact[0] if optimizer == "SGD" else spread.offset
    assert spread.condition == pytest.approx(expected, rel=1e-6)


def gradient_descent(tops, curvature=2.0, rate=0.01) -> Run:
    """Measured as on a quadratic whose path curves by `curvature`; `tops`: largest eigenvalue at each estimate."""
    steps = np.arange(1, 61)
    scalars = pd.DataFrame({"step": steps, "loss": 1.0, "lr": rate, "overshoot": rate * curvature / 2})
    estimates = pd.DataFrame(
        {"step": np.arange(1, len(tops) + 1), "eigenvalues": [[top] for top in tops], "stability": rate * tops / 2}
    )
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"momentum": 0.0}]}
    return Run.from_frames(meta, {"scalars": scalars, "curvature": estimates})


def test_condition_number_from_overshoot_alone():
    assert quadratic.condition(gradient_descent(np.full(4, 150.0)), 30, 60) == pytest.approx(150 / 2)
    assert np.isnan(quadratic.condition(gradient_descent(np.array([150.0, 120.0, 90.0])), 30, 60))  # s is of the past


@pytest.mark.parametrize("width", [8, 64])
def test_logistic_offset_bounds_how_far_the_mean_mode_stands_out(width):
    """The top eigenvalue of the outputs' second moments, over the next one, for logistic units of random inputs."""
    rng = np.random.default_rng(4)
    h = 1 / (1 + np.exp(-rng.normal(size=(2000, 6)) @ rng.normal(size=(6, width)) / 6**0.5))
    eigenvalues = np.linalg.eigvalsh(h.T @ h / len(h))
    units = {"step": 1, "layer": ["1"], "activation": ["sigmoid"], "units": [width], "dead_fraction": [np.nan]}
    table = pd.DataFrame({**units, "mean": [h.mean()], "std": [h.std()]})
    layer, offset = conditioning.logistic_offset(
        Run.from_frames({"name": "test", "status": "finished"}, {"units": table})
    )
    assert layer == "1" and 10 <= eigenvalues[-1] / eigenvalues[-2] <= offset


def test_swings_are_rises_not_the_fall():
    time = np.arange(400)
    ringing, falling = run_of(1 + 0.2 * np.exp(-time / 300) * np.cos(time / 15) ** 2), run_of(1 + np.exp(-time / 100))
    found = _swings(ringing, signals.loss(ringing), 200)
    assert found and max(each.rise / each.covered for each in found) > 0.5
    assert _swings(falling, signals.loss(falling), 200) == []


@pytest.mark.parametrize(
    ("overshoot", "slope", "cosine", "constant", "held_up"),
    [
        (np.r_[np.full(11, 0.4), np.full(4, 1.5)], 0.0, -0.3, 2.0, True),  # four of fifteen raise their own batch's
        (np.r_[np.full(11, 0.4), np.full(4, 1.5)], 0.0, 0.3, 2.0, False),  # gradients agree: nothing is undone
        (np.full(15, 0.4), 0.0, -0.3, 2.0, False),
        (np.full(15, 0.4), 0.006, -0.3, 2.0, True),  # the loss of all batches has climbed
        (np.full(15, 0.4), 0.006, -0.3, np.nan, False),  # as may one whose targets move, as a network's own
        (np.full(15, 0.1), 0.006, -0.3, 2.0, False),  # short steps do not make it climb
        (np.full(15, 0.4), -0.004, -0.3, 2.0, False),  # it still falls
    ],
)
def test_long_steps_hold_a_noisy_loss_up(overshoot, slope, cosine, constant, held_up):
    loss = np.exp(slope * np.arange(300) + np.random.default_rng(5).normal(0, 0.1, 300))
    measured = np.full((2, 300), np.nan)
    measured[:, 155::10] = overshoot, np.random.default_rng(6).normal(cosine, 0.1, 15)
    columns = {"step": np.arange(1, 301), "loss": loss, "lr": 0.1}
    columns |= {"overshoot": measured[0], "gradient_cosine": measured[1], "grad_norm": 1.0, "update_norm": 1.0}
    columns |= {"constant_loss": np.where(np.isnan(measured[1]), np.nan, constant)}
    run = Run.from_frames(
        {"name": "test", "status": "finished", "optimizer": "Adam", "hyperparameters": [{"betas": (0.9, 0.999)}]},
        {"scalars": pd.DataFrame(columns)},
    )
    assert too_far(run, signals.loss(run), np.array([1]), np.array([0.1])) is held_up


def standing_kinds(**measured) -> list[str]:
    """What `lr-too-small` says of a noisy loss that stands still, a thousandth of the way to the limit."""
    scalars = pd.DataFrame({"step": STEPS, "loss": 1 + 0.1 * np.sin(1e3 * STEPS), "lr": 1e-5, "grad_norm": 0.5})
    curvature = pd.DataFrame({"step": [1, 100, 200, 290], "stability": 1e-3, "progress": 1e-3})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"momentum": 0.0}]}
    run = Run.from_frames(meta, {"scalars": scalars.assign(**measured), "curvature": curvature})
    return [finding.kind for finding in lr_too_small.check(run)]


STEPS = np.arange(1, 301)


@pytest.mark.parametrize(
    ("overshoot", "kinds"),
    [(1e-3, ["lr-too-small"]), (-1e-3, ["lr-too-small"]), (5e-3, []), (-5e-3, [])],
)
def test_a_path_that_hardly_bends_was_hardly_begun(overshoot, kinds):
    """300 updates, 0.6 or 3 times the way to the minimum along them, or to the crest."""
    assert standing_kinds(update_norm=2e-3, gradient_cosine=0.9, overshoot=overshoot) == kinds


@pytest.mark.parametrize(("spread", "kinds"), [(0.05, ["lr-too-small"]), (1e-4, [])])
def test_steps_that_cannot_move_the_loss_need_no_certain_overshoot(spread, kinds):
    """Too short to measure it well; where it is known, it says that each goes a good part of the way."""
    overshoot = 0.006 + spread * np.sin(1e3 * STEPS**2)
    assert standing_kinds(update_norm=1e-4, gradient_cosine=0.15, overshoot=overshoot) == kinds


def test_the_noise_of_a_run_that_is_mostly_growth_is_growth():
    losses = [2.3, 11.7, 58.0, 12.3, 15.8, 169.0, 88.8, 2674.0, 8230.0, 4e5, 1e8, 7e8, 4e10, 9e23, 1e24, 8e24]
    run = run_of(np.r_[losses, np.full(130, np.nan)], grad_norm=1.0)
    assert growth(run, signals.loss(run)).onset == 1


@pytest.mark.parametrize(("gradient", "held_up"), [(0.34, True), (0.2, False)])
def test_an_exact_quadratic_is_held_up_by_a_tenth_of_its_loss(gradient, held_up):
    """|g|^2 kappa / (2 lambda) of 0.13 or 0.045, where the loss came from 3 to 0.63."""
    steps = np.arange(1, 301)
    scalars = {"step": steps, "loss": 0.5 + 2.5 * np.exp(-steps / 100), "lr": 0.01, "grad_norm": gradient}
    table = pd.DataFrame({"step": [1, 100, 200, 290], "eigenvalues": [[100.0]] * 4})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "loss_path": "mse_loss", "linear_model": True}
    run = Run.from_frames(meta, {"scalars": pd.DataFrame(scalars), "curvature": table})
    assert ravine._held_up(run, signals.loss(run), signals.curvature(run), 225.0, 0.3, 0.5) is held_up


@pytest.mark.parametrize(
    ("types", "stretched"),
    [
        (("Linear", "Tanh", "Linear", "BatchNorm1d"), True),
        (("Linear", "BatchNorm1d", "Tanh", "Linear"), False),
        (("BatchNorm1d", "Linear", "Tanh", "Linear"), False),
        (("LayerNorm", "Linear", "Tanh", "Linear"), True),  # of one example's features
    ],
)
def test_a_batch_norm_before_the_second_weights_takes_the_mean_of_the_inputs_out(types, stretched):
    steps = np.arange(1, 101)
    modules = [{"name": str(at), "type": each} for at, each in enumerate(types)]
    layers = [{"name": f"{at}.weight", "shape": [8, 8]} for at, each in enumerate(types) if each == "Linear"]
    meta = {"name": "test", "status": "finished", "optimizer": "Adam", "modules": modules, "layers": layers}
    inputs = pd.DataFrame({"step": 1, "feature": list("01234567"), "mean": 50.0, "std": 1.0, "condition": 1.0})
    curvature = pd.DataFrame({"step": [50, 100], "stability": 0.1, "progress": 0.2})
    scalars = pd.DataFrame({"step": steps, "loss": 1.0, "lr": 0.01})
    run = Run.from_frames(meta, {"scalars": scalars, "inputs": inputs, "curvature": curvature})
    found = ravine._stretched(run, signals.loss(run), signals.curvature(run), 1.0)
    assert (found is not None) == stretched


@pytest.mark.parametrize(("bend", "kinds"), [(-0.01, ["saddle-point"]), (-1e-5, [])])
def test_a_saddle_under_a_tiny_rate_is_one_where_the_path_surely_bends_down(bend, kinds):
    """Elsewhere the gradient would take the loss far down at a rate as large as the curvature allows."""
    steps = np.arange(1, 301)
    scalars = pd.DataFrame({"step": steps, "loss": 2.3 + 1e-4 * np.sin(1e3 * steps), "lr": 1e-4, "grad_norm": 0.25})
    scalars["overshoot"] = np.where(steps % 10 == 0, bend + 1e-3 * np.sin(steps), np.nan)
    curvature = pd.DataFrame({"step": [1, 100, 200, 290], "stability": 3e-3, "progress": 0.1, "smallest": -0.5})
    curvature = curvature.assign(smallest_residual=1e-3, eigenvalues=[[5.0]] * 4)
    run = Run.from_frames({"name": "test", "status": "finished"}, {"scalars": scalars, "curvature": curvature})
    assert [finding.kind for finding in saddle_point.check(run)] == kinds


@pytest.mark.parametrize(("bend", "kinds"), [(0.0, ["saddle-point"]), (0.1, [])])
def test_updates_that_curve_upwards_after_many_escape_times_are_held_by_something_else(bend, kinds):
    """The way out grows e-fold in 20 updates of 300."""
    steps = np.arange(1, 301)
    scalars = pd.DataFrame({"step": steps, "loss": 2.3 + 1e-4 * np.sin(1e3 * steps), "lr": 0.1, "grad_norm": 0.01})
    scalars["overshoot"] = np.where(steps % 10 == 0, bend + 1e-2 * np.sin(steps), np.nan)
    curvature = pd.DataFrame({"step": [1, 100, 200, 290], "stability": 0.25, "progress": 0.5, "smallest": -0.5})
    curvature = curvature.assign(smallest_residual=1e-3, eigenvalues=[[5.0]] * 4)
    run = Run.from_frames({"name": "test", "status": "finished"}, {"scalars": scalars, "curvature": curvature})
    assert [finding.kind for finding in saddle_point.check(run)] == kinds


@pytest.mark.parametrize(("count", "of"), [(0, 10), (1, 10), (4, 15), (3, 15), (10, 15)])
def test_more_than_chance_is_the_binomial_test(count, of):
    assert _more_than_chance(count, of) == (stats.binomtest(count, of, 0.05, alternative="greater").pvalue < 0.01)


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_heavy_ball_contraction_is_the_spectral_radius_of_its_iteration(condition):
    mu, rho = limits.heavy_ball(condition)
    smallest, largest = 1.0, condition
    rate = 4 / (np.sqrt(largest) + np.sqrt(smallest)) ** 2
    for curvature in (smallest, largest):
        step = np.array([[1 + mu - rate * curvature, -mu], [1, 0]])
        assert np.abs(np.linalg.eigvals(step)).max() == pytest.approx(rho, abs=1e-4)


def test_numbers_are_written_as_people_write_them():
    assert [number(each) for each in (0.0, 0.123456, 1234.5, 1e-7, np.inf, np.nan)] == [
        "0",
        "0.123",
        "1,234",
        "1.0e-7",
        "infinite",
        "NaN",
    ]


@pytest.mark.parametrize("kind", ["noise", "walk", "ties", "gaps", "falling", "waves"])
@pytest.mark.parametrize(
    ("count", "window"), [(1, 1), (3, 3), (40, 4), (399, 19), (400, 20), (5_000, 250), (5_001, 251)]
)
def test_the_lowest_median_is_the_least_of_a_rolling_median(kind: str, count: int, window: int) -> None:
    random, at = np.random.default_rng(count), np.arange(count)
    values = {
        "noise": random.standard_normal(count),
        "walk": np.cumsum(random.standard_normal(count)),
        "ties": np.round(random.standard_normal(count)),
        "gaps": np.where(random.random(count) < 0.01, random.choice([np.nan, np.inf, -np.inf], count), at % 7.0),
        "falling": np.exp(-at / count),
        "waves": np.sin(6 * np.pi * at / count),  # smooth: many windows could be the least
    }[kind]
    rolling = pd.Series(values).rolling(window).median().to_numpy()
    least = rolling[np.isfinite(rolling)].min(initial=np.inf)
    found = lowest_median(values, window)
    assert found == least or (np.isnan(found) and np.isinf(least))


@pytest.mark.parametrize(("rows", "proved"), [(1, 0.0), (8, (0.05 - 2 * 0.03 / 8**0.5) / 1.0)])
def test_independent_batches_prove_together_what_none_proves_alone(rows, proved):
    """|G|^2 = 0.05 +- 0.03 beside a noise of 0.95: 5 % of the squared gradient is signal."""
    steps = np.arange(1, rows + 1)
    scalars = pd.DataFrame({"step": steps, "loss": 1.0})
    measured = {"gradient_square": 0.05, "gradient_square_error": 0.03, "gradient_noise": 0.95}
    batches = pd.DataFrame({"step": steps, "origin": steps, **measured})
    run = Run.from_frames({"name": "test", "status": "finished"}, {"scalars": scalars, "batches": batches})
    assert gradient_signal.surely_at_least(run, 0) == pytest.approx(proved)
    if proved:
        assert gradient_signal.share(run, 0) == pytest.approx(0.05)
    else:
        with pytest.raises(signals.Missing):
            gradient_signal.share(run, 0)


@pytest.mark.parametrize(("length", "expected"), [(1, False), (3, True)])
def test_a_tower_of_the_loss_is_more_than_one_tall_batch(length, expected):
    values = np.full(60, 2.0)
    values[30 : 30 + length] = 10.0
    history = signals.Loss(np.arange(60), values, 3, 2.0, 2.0, 2.0, 0.0)
    assert dead_units._towered(history, 60) is expected


@pytest.mark.parametrize(("before", "expected"), [(1.05, 0.5), (2.0, 0.0)])
def test_few_late_cosines_are_made_up_for_by_earlier_ones_while_the_loss_stands(before, expected):
    """Sixteen measured before the later half and two in it, which point nowhere."""
    cosines = np.full(200, np.nan)
    cosines[20:100:5], cosines[[120, 160]] = 0.5, [0.1, -0.1]
    run = run_of([before] * 100 + [1.0] * 100, gradient_cosine=cosines)
    assert gradient_signal.share(run, 101) == pytest.approx(expected, abs=1e-9)
    assert (gradient_signal.surely(run, 101) > 0.1) == (expected > 0)
