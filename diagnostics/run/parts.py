"""From the records of several streams to one table: concatenated, unfolded, in the order of steps. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.metrics import TABLES
from diagnostics.run.filling import ALL_STEPS, Bounds
from diagnostics.run.layout import MISSING, NUMPY, column_dtype


@dataclass(frozen=True)
class Part:
    """Visible records of one stream: steps (T,), and column -> values (T,) or (T, L).

    `names` (L,) and `texts`, column -> one text per name, of a keyed table.
    """

    steps: np.ndarray
    values: Mapping[str, np.ndarray]
    names: tuple[str, ...] = ()
    texts: Mapping[str, tuple[str, ...]] | None = None

    def between(self, bounds: Bounds) -> "Part":
        if bounds == ALL_STEPS:
            return self
        inside = (self.steps >= bounds[0]) & (self.steps <= bounds[1])
        rows = np.flatnonzero(inside)
        if len(rows) and len(rows) == rows[-1] - rows[0] + 1:  # as in every stream that one process wrote
            return self.where(slice(rows[0], rows[-1] + 1))
        return self.where(inside)

    def where(self, rows: "np.ndarray | slice") -> "Part":
        values = {name: values[rows] for name, values in self.values.items()}
        return Part(self.steps[rows], values, self.names, self.texts)


def columns_of(table: str, parts: Sequence[Part], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Column -> one value a row; only `step` and what any part has."""
    pieces = [
        _unfold(table, part, columns) if TABLES[table].key else {"step": part.steps, **part.values} for part in parts
    ]
    rows = [len(piece["step"]) for piece in pieces]
    present = ["step", *(name for name in columns if name != "step" and any(name in piece for piece in pieces))]
    return {name: _joined(table, name, [piece.get(name) for piece in pieces], rows) for name in present}


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """By step; rows of one step as they were written."""
    if frame["step"].is_monotonic_increasing:
        return frame
    return frame.iloc[np.argsort(frame["step"].to_numpy(), kind="stable")].reset_index(drop=True)


def distinct(steps: list[np.ndarray]) -> np.ndarray:
    """Steps of all parts, ascending, each once."""
    joined = np.concatenate([np.empty(0, np.int64), *steps])
    return joined if (np.diff(joined) > 0).all() else np.unique(joined)


def last_given(steps: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """For each step of `at` (T,) the last number given at exactly that step, else NaN. `steps` and `values` (N,)."""
    given = ~np.isnan(values)
    order = np.argsort(steps[given], kind="stable")
    steps, values = steps[given][order], values[given][order]
    if not len(steps):
        return np.full(len(at), np.nan)
    place = np.searchsorted(steps, at, side="right") - 1
    return np.where((place >= 0) & (steps[place] == at), values[place], np.nan)


def _unfold(table: str, part: Part, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """One row a step and name. This is what `Run.matrix` avoids."""
    piece = {"step": np.repeat(part.steps, len(part.names))}
    texts = {TABLES[table].key: part.names, **(part.texts or {})}
    for name in columns:
        if name in texts:
            piece[name] = np.tile(np.array(texts[name], object), len(part.steps))
        elif name in part.values:
            piece[name] = part.values[name].reshape(-1)
    return piece


def _joined(table: str, column: str, pieces: list[np.ndarray | None], rows: list[int]) -> np.ndarray:
    dtype = column_dtype(table, column)
    filled = [_missing(dtype, count) if piece is None else piece for piece, count in zip(pieces, rows, strict=True)]
    if len(filled) == 1:
        return filled[0]
    return np.concatenate(filled) if filled else _missing(dtype, 0)


def _missing(dtype: str, rows: int) -> np.ndarray:
    result: Any = np.empty(rows, NUMPY.get(dtype, object))
    result[:] = [MISSING[dtype]] * rows if dtype == "list" else MISSING[dtype]
    return result
