"""Downsampling hides no spike."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from diagnostics.run import BUCKETS, bucketed


def buckets(*given) -> pd.DataFrame:
    return pd.DataFrame(vars(bucketed(*given)))


def naive(steps, values, frame):
    """Each bucket by its own steps, with pandas."""
    series = pd.Series(values, steps)
    for row in frame.itertuples():
        inside = series.loc[row.step_first : row.step_last]
        finite = inside[np.isfinite(inside)]
        yield (finite.min(), finite.max(), inside.iloc[-1]), row


def test_four_spikes_in_twenty_thousand_steps_all_show():
    steps, values = np.arange(1, 20_001), np.full(20_000, 1.0)
    spikes = [137, 5_555, 12_000, 19_999]
    values[np.array(spikes) - 1] = 100.0
    frame = buckets(steps, values)
    assert len(frame) <= BUCKETS and (frame["max"] == 100).sum() == 4
    for spike in spikes:
        assert frame[(frame["step_first"] <= spike) & (frame["step_last"] >= spike)]["max"].item() == 100


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(
    gaps=st.lists(st.integers(1, 50), min_size=1, max_size=300),
    data=st.data(),
    count=st.integers(1, 40),
    lo=st.none() | st.integers(-10, 500),
    hi=st.none() | st.integers(-10, 5000),
)
def test_buckets_are_the_extremes_of_their_steps(gaps, data, count, lo, hi):
    steps = np.cumsum(gaps)
    values = np.array(data.draw(st.lists(numbers, min_size=len(steps), max_size=len(steps))))
    frame = buckets(steps, values, lo, hi, count)
    assert len(frame) <= count
    inside = steps[(steps >= (steps[0] if lo is None else lo)) & (steps <= (steps[-1] if hi is None else hi))]
    covered = [
        step for row in frame.itertuples() for step in steps[(steps >= row.step_first) & (steps <= row.step_last)]
    ]
    assert covered == inside.tolist()
    for expected, row in naive(steps, values, frame):
        np.testing.assert_array_equal([row.min, row.max, row.last], expected)


def test_zooming_in_refines_to_single_steps():
    steps = np.arange(1, 1_000_001)
    frame = buckets(steps, np.sin(steps), 500_000, 500_999)
    assert len(frame) == 1000 and (frame["step_first"] == frame["step_last"]).all()


def test_series_side_by_side_are_bucketed_alike():
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    values[5, 1] = np.nan
    together = bucketed(np.arange(1000), values, count=10)
    assert together.min.shape == (10, 3) and together.min.dtype == np.float32
    for column in range(3):
        alone = bucketed(np.arange(1000), values[:, column], count=10)
        for name in ("min", "max", "last"):
            np.testing.assert_array_equal(getattr(together, name)[:, column], getattr(alone, name))


def test_nothing_gives_nothing():
    assert len(buckets(np.empty(0, np.int64), np.empty(0))) == 0
    assert len(buckets(np.arange(10), np.arange(10.0), 20, 30)) == 0
    assert bucketed(np.empty(0, np.int64), np.empty((0, 3))).max.shape == (0, 3)
