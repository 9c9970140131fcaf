"""Fewer points, nothing lost: what a chart shows of a long run. NumPy only.

A line keeps the minimum and the maximum of each bucket, so that a one-step spike survives at any run length (every
k-th point and bucket means lose all of them). A heat map keeps the worst value of each bin.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diagnostics.run import bucketed

BUCKETS = 700  # two points each: more than a screen is wide


def thin(
    steps: NDArray, values: NDArray, lo: float | None = None, hi: float | None = None, buckets: int = BUCKETS
) -> tuple[NDArray, NDArray]:
    """At most two finite points a bucket, its least and its greatest value; everything where it fits.

    steps (T,), values (T,) -> steps (P,), values (P,), from `lo` to `hi` only.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    inside = np.ones(len(steps), bool) if lo is None or hi is None else (steps >= lo) & (steps <= hi)
    if np.count_nonzero(inside) > 2 * buckets:
        kept = bucketed(steps, values, lo, hi, buckets)
        steps = np.stack([kept.step_first, kept.step_last], axis=1).ravel()
        values = np.stack([kept.min, kept.max], axis=1).ravel()
        inside = np.ones(len(steps), bool)
    finite = inside & np.isfinite(values)
    return steps[finite], values[finite]


def bin_columns(steps: NDArray, values: NDArray, columns: int, low: bool = False) -> tuple[NDArray, NDArray]:
    """Join neighbouring steps of `values` (T, L) until at most `columns` remain, keeping the worst value of each.

    -> first step of each column (C,), values (C, L). What was never measured stays NaN.
    """
    if len(steps) <= columns:
        return steps, values
    firsts = bucketed(steps, steps, count=columns).step_first
    return firsts, worst(values, np.searchsorted(steps, firsts), low)


def largest_of(steps: NDArray, *series: NDArray) -> NDArray:
    """Indices of the rows where one of `series` (T,) is the largest of its bucket, and of the last row; at most
    `BUCKETS` and one. All rows where they fit."""
    if len(steps) <= BUCKETS:
        return np.arange(len(steps))
    starts = np.searchsorted(steps, bucketed(steps, steps, count=BUCKETS // len(series)).step_first)
    ranked = [np.where(np.isnan(values), -np.inf, values) for values in series]
    tops = [a + values[a:b].argmax() for values in ranked for a, b in pairwise([*starts, len(steps)])]
    return np.unique(np.append(tops, len(steps) - 1))


def worst(values: NDArray, starts: NDArray, low: bool) -> NDArray:
    """Of the rows of `values` (T, L) from each of `starts` (C,) to the next: infinity where there is one, else the
    smallest if `low`, else the largest; NaN where nothing was measured -> (C, L)."""
    found = np.stack([(np.fmin if low else np.fmax).reduce(part) for part in np.split(values, starts[1:])])
    infinite = np.isinf(values)
    return np.where(np.logical_or.reduceat(infinite, starts), np.inf, found) if infinite.any() else found


def spans(steps: NDArray, flags: NDArray) -> list[tuple[int, int, int]]:
    """First step, last step and number of the updates in each stretch where `flags` (T,) holds. Stretches that lie
    closer than a bucket are one, so that there are no more than the chart can show."""
    at = np.flatnonzero(flags)
    if not len(at):
        return []
    apart = (np.diff(at) > 1) & (np.diff(steps[at]) > (steps[-1] - steps[0]) / BUCKETS)
    return [(int(part[0]), int(part[-1]), len(part)) for part in np.split(steps[at], np.flatnonzero(apart) + 1)]


def smooth(values: NDArray, window: int) -> NDArray:
    """Centred mean of the finite values (T,) within `window` updates; NaN where none is."""
    if window <= 1 or not len(values):
        return values
    finite, width = np.isfinite(values), 2 * (window // 2) + 1
    total, seen = (_sums(part.astype(float), width) for part in (np.where(finite, values, 0.0), finite))
    return np.where(seen > 0, total / np.maximum(seen, 1), np.nan)


def _sums(values: NDArray, width: int) -> NDArray:
    """Sums (T,) of the `width` neighbours around each of values (T,), an odd number; beyond the ends lie zeros.

    Of sums over 1, 2, 4, ... neighbours. The difference of two running totals would be less work, but one huge value
    leaves nothing of the small ones in any total behind it.
    """
    blocks = np.pad(values, width // 2)
    total, done = np.zeros(len(values)), 0
    for size in (1 << bit for bit in range(width.bit_length())):
        if width & size:
            total += blocks[done : done + len(values)]
            done += size
        blocks = blocks[:-size] + blocks[size:]
    return total
