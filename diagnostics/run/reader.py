"""A recorded run, as tables. A `Run` is a snapshot; its tables are read when they are first asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from diagnostics.metrics import TABLES
from diagnostics.run.layout import MISSING, column_dtype
from diagnostics.run.metadata import checked

_PANDAS = {"int64": np.int64, "float32": np.float32, "float64": np.float64, "string": "str", "list": object}


class Source(Protocol):
    """Where a run's tables come from: files, or frames in memory."""

    def fingerprint(self) -> list: ...

    def columns(self, table: str) -> tuple[str, ...]: ...

    def last_step(self) -> int: ...

    def frame(self, table: str, columns: Sequence[str]) -> pd.DataFrame: ...

    def matrix(self, table: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class Run:
    """`meta`: what the run says about itself; `summary`: what was written at its close, if anything."""

    def __init__(
        self,
        path: str,
        meta: dict[str, Any],
        source: Source,
        summary: dict[str, Any] | None = None,
        limit: int | None = None,
        reload: "Callable[[], Run] | None" = None,
    ):
        self.path = path
        self.meta = meta
        self.summary = summary
        self._source = source
        self._limit = limit
        self._reload = reload

    @classmethod
    def from_frames(cls, meta: dict[str, Any], frames: Mapping[str, pd.DataFrame]) -> "Run":
        """A run in memory, from frames as `table` returns them; missing columns are filled."""
        return cls("memory", checked(meta, "memory"), Frames(frames))

    def __repr__(self) -> str:
        return f"Run({self.path!r}, {self.meta['status']}, {self.last_step} steps)"

    def refresh(self) -> "Run":
        """The run as it is on disk now; only what is new is read."""
        return self if self._reload is None else self._reload()

    @property
    def last_step(self) -> int:
        last = self._source.last_step()
        return last if self._limit is None else min(last, self._limit)

    def fingerprint(self) -> list:
        """Changes when records are added: what a cache may go by."""
        return [self._source.fingerprint(), self._limit, self.meta["status"]]

    def columns(self, table: str) -> tuple[str, ...]:
        """Vocabulary first, then what the script logged."""
        _known(table)
        return (
            *TABLES[table].names,
            *(name for name in self._source.columns(table) if name not in TABLES[table].names),
        )

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per `metrics.TABLES[name].row`, in the order of steps; what was not recorded is NaN, "" or []."""
        available = self.columns(name)
        wanted = list(available if columns is None else columns)
        if unknown := [column for column in wanted if column not in available]:
            raise KeyError(f"table {name!r} has no column {unknown[0]!r}; it has {', '.join(available)}")
        needed = list(dict.fromkeys(["step", *wanted]))
        frame = self._source.frame(name, needed)
        if self._limit is not None:
            frame = frame[frame["step"] <= self._limit].reset_index(drop=True)
        return frame.loc[:, wanted]

    def matrix(self, table: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A statistic of a keyed table: steps (T,), names (L,), values (T, L); NaN where a name was not measured."""
        numeric = column in self.columns(table) and column_dtype(table, column) != "string"
        if not numeric or TABLES[table].key is None:
            keyed = ", ".join(name for name, known in TABLES.items() if known.key)
            raise KeyError(f"no statistic {column!r} per name in table {table!r}; tables with names: {keyed}")
        steps, names, values = self._source.matrix(table, column)
        if self._limit is None:
            return steps, names, values
        rows = np.searchsorted(steps, self._limit, side="right")
        return steps[:rows], names, values[:rows]

    def until(self, step: int) -> "Run":
        """The run as it was known at `step`: a diagnosis of it uses nothing later."""
        limit = step if self._limit is None else min(step, self._limit)
        meta = self.meta | {"status": "running"} if limit < self.last_step else self.meta
        return Run(self.path, meta, self._source, None, limit)


def matrix_dtype(table: str, column: str) -> type:
    """Counts become float64, so that NaN can mark what was not measured."""
    return np.float32 if column_dtype(table, column) == "float32" else np.float64


def _known(table: str) -> None:
    if table not in TABLES:
        raise KeyError(f"no table {table!r}; a run has {', '.join(TABLES)}")


def fill(name: str, data: Mapping[str, Any], columns: Sequence[str], rows: int) -> pd.DataFrame:
    """A frame with exactly these columns, in the vocabulary's types."""
    filled = {column: _series(name, column, data.get(column), rows) for column in columns}
    return pd.DataFrame(filled, columns=list(columns), index=pd.RangeIndex(rows))


def _series(table: str, column: str, values: Any, rows: int) -> Any:
    dtype = column_dtype(table, column)
    if dtype == "list":
        series = np.empty(rows, object)  # filled one by one: NumPy would turn lists of one length into a matrix
        for row in range(rows):
            series[row] = [] if values is None else list(values[row])
        return series
    if values is None:
        return pd.Series(MISSING[dtype], index=pd.RangeIndex(rows), dtype=_PANDAS[dtype])
    return pd.Series(np.asarray(values), dtype=_PANDAS[dtype])


class Frames:
    """Tables of a run in memory."""

    def __init__(self, frames: Mapping[str, pd.DataFrame]):
        for name in frames:
            _known(name)
        self._frames = {name: self._ordered(frame) for name, frame in frames.items()}

    @staticmethod
    def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.sort_values("step", kind="stable").reset_index(drop=True)

    def fingerprint(self) -> list:
        return [id(self)]

    def columns(self, table: str) -> tuple[str, ...]:
        return tuple(self._frames[table].columns) if table in self._frames else ()

    def last_step(self) -> int:
        return max((int(frame["step"].to_numpy().max()) for frame in self._frames.values() if len(frame)), default=0)

    def frame(self, table: str, columns: Sequence[str]) -> pd.DataFrame:
        frame = self._frames.get(table, pd.DataFrame())
        return fill(table, {str(name): frame[name] for name in frame}, columns, len(frame))

    def matrix(self, table: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        key = TABLES[table].key
        assert key is not None
        frame = self.frame(table, ["step", key, column])
        steps, rows = np.unique(frame["step"].to_numpy(), return_inverse=True)
        places, names = pd.factorize(frame[key])
        values = np.full((len(steps), len(names)), np.nan, matrix_dtype(table, column))
        values[rows, places] = frame[column].to_numpy()
        return steps, np.asarray(names, object), values
