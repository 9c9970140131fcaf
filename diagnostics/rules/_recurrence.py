"""Whether a loss comes again after an epoch: the batches are the same ones, in the same order.

Source: the autocorrelation of a series, by the Fourier transform (Wiener and Khinchin).
"""

from typing import NamedTuple

import numpy as np

AGAIN = 0.6  # correlation of the losses with those an epoch later: the batches are the same ones


class Recurrence(NamedTuple):
    """`correlation` of a series with itself so many values, `after`, later: 1 where the same values come again and
    again, near 0 of noise and of slow changes."""

    correlation: float
    after: int


NONE = Recurrence(0.0, 0)


def recurrence(values: np.ndarray, *, least: int = 100, settled: float = 0.2, batches: int = 5) -> Recurrence:
    """The largest correlation an epoch of so many `batches` at least later, after it had fallen to `settled`. At most
    half the series apart: enough is left."""
    count = len(values)
    if count < least or not np.isfinite(values).all() or not np.ptp(values) > 0:
        return NONE
    rest = _without_trend(values)
    powers = np.cumsum(np.r_[0.0, rest**2])
    lags = np.arange(count // 2)
    spectrum = np.fft.rfft(rest, 2 * count)
    products = np.fft.irfft(np.abs(spectrum) ** 2)[: len(lags)]
    correlations = products / np.sqrt(powers[count - lags] * (powers[-1] - powers[lags]))
    away = np.flatnonzero(correlations < settled)
    if not len(away) or max(away[0], batches) >= len(correlations):
        return NONE
    first = max(int(away[0]), batches)
    after = first + int(correlations[first:].argmax())
    return Recurrence(float(correlations[after]), after)


def in_turn(values: np.ndarray, after: int) -> np.ndarray:
    """What a series that comes again has at each place of an epoch, the last of them at its end, beside its mean and
    its trend from epoch to epoch."""
    epochs = values[len(values) % after :].reshape(-1, after)
    means = epochs.mean(1)
    slope = np.polyfit(np.arange(len(means)), means, 1)[0] / after
    return (epochs - means[:, None]).mean(0) - slope * (np.arange(after) - (after - 1) / 2)


def _without_trend(values: np.ndarray) -> np.ndarray:
    time = np.linspace(-1, 1, len(values))
    return values - np.polyval(np.polyfit(time, values, 1), time)
