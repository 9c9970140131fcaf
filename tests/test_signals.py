"""The statistics that rules decide by, against closed forms and simulated nulls."""

import numpy as np
import pandas as pd
import pytest

from diagnostics.rules import _conditioning as conditioning
from diagnostics.rules import _limits as limits
from diagnostics.rules import _signals as signals
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
    stretch = signals.flat(run_of(loss + np.random.default_rng(3).normal(0, 0.01, 200)))
    assert stretch is not None and stretch.escaped
    assert stretch.first_step == 1 and 100 <= stretch.last_step <= 130


def test_a_steady_fall_is_not_flat():
    assert (
        signals.flat(run_of(3 * 0.98 ** np.arange(200))) is None
        or signals.flat(run_of(3 * 0.98 ** np.arange(200))).share < 0.5
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
