"""Frames with exactly the columns asked for, in the vocabulary's types: what was not recorded is NaN, "" or []."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.metrics import TABLES
from diagnostics.run.layout import MISSING, NUMPY, column_dtype

Bounds = tuple[int, int]  # first and last step, both included
ALL_STEPS: Bounds = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)


def matrix_dtype(table: str, column: str) -> type:
    """Counts become float64, so that NaN can mark what was not measured."""
    return np.float32 if column_dtype(table, column) == "float32" else np.float64


def check_table(table: str) -> None:
    if table not in TABLES:
        raise KeyError(f"no table {table!r}; a run has {', '.join(TABLES)}")


def fill(name: str, data: Mapping[str, Any], columns: Sequence[str], rows: int) -> pd.DataFrame:
    """A frame with exactly these columns, in the vocabulary's types."""
    filled = {column: _values(name, column, data.get(column), rows) for column in columns}
    return pd.DataFrame(filled, columns=list(columns), index=pd.RangeIndex(rows))


def _values(table: str, column: str, values: Any, rows: int) -> Any:
    dtype = column_dtype(table, column)
    if dtype == "list":
        lists = np.empty(rows, object)  # filled one by one: NumPy would turn lists of one length into a matrix
        for row in range(rows):
            lists[row] = [] if values is None else list(values[row])
        return lists
    if dtype == "string":
        return pd.Series(np.full(rows, "", object) if values is None else np.asarray(values, object), dtype="str")
    return np.full(rows, MISSING[dtype], NUMPY[dtype]) if values is None else np.asarray(values, NUMPY[dtype])
