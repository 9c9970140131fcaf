"""A recorded run, as tables. A `Run` is a snapshot; its tables are read when they are first asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from diagnostics.metrics import TABLES
from diagnostics.run.filling import ALL_STEPS, Bounds, check_table
from diagnostics.run.layout import column_dtype
from diagnostics.run.memory import Frames
from diagnostics.run.metadata import checked


class Source(Protocol):
    """Where a run's tables come from: files, or frames in memory."""

    def fingerprint(self) -> list: ...

    def columns(self, table: str) -> tuple[str, ...]: ...

    def last_step(self) -> int: ...

    def steps(self, table: str) -> np.ndarray: ...

    def frame(self, table: str, columns: Sequence[str], bounds: Bounds) -> pd.DataFrame: ...

    def matrix(self, table: str, column: str, copy: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


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
        return min(self._source.last_step(), self._last)

    @property
    def _last(self) -> int:
        return ALL_STEPS[1] if self._limit is None else self._limit

    def fingerprint(self) -> list:
        """Changes when records are added: what a cache may go by."""
        return [self._source.fingerprint(), self._limit, self.meta["status"]]

    def columns(self, table: str) -> tuple[str, ...]:
        """Vocabulary first, then what the script logged."""
        check_table(table)
        known = TABLES[table].names
        return (*known, *(name for name in self._source.columns(table) if name not in known))

    def table(
        self, name: str, columns: Sequence[str] | None = None, *, first: int | None = None, last: int | None = None
    ) -> pd.DataFrame:
        """One row per `metrics.TABLES[name].row`, in the order of steps; what was not recorded is NaN, "" or [].

        `first` and `last` step bound what is unfolded and returned.
        """
        available = self.columns(name)
        wanted = list(available if columns is None else columns)
        if unknown := [column for column in wanted if column not in available]:
            raise KeyError(f"table {name!r} has no column {unknown[0]!r}; it has {', '.join(available)}")
        bounds = (ALL_STEPS[0] if first is None else first, min(self._last if last is None else last, self._last))
        frame = self._source.frame(name, list(dict.fromkeys(["step", *wanted])), bounds)
        return frame if frame.columns.tolist() == wanted else frame.loc[:, wanted]

    def steps(self, table: str) -> np.ndarray:
        """The steps at which a table has rows (T,), ascending."""
        check_table(table)
        steps = self._source.steps(table)
        return steps[: np.searchsorted(steps, self._last, side="right")]

    def matrix(self, table: str, column: str, *, copy: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A statistic of a keyed table: steps (T,), names (L,), values (T, L); NaN where a name was not measured.

        Without `copy` they may be what the run itself keeps, and cannot be written to: of a long run a copy takes as
        long as much that is done with it.
        """
        numeric = column in self.columns(table) and column_dtype(table, column) != "string"
        if not numeric or TABLES[table].key is None:
            keyed = ", ".join(name for name, known in TABLES.items() if known.key)
            raise KeyError(f"no statistic {column!r} per name in table {table!r}; tables with names: {keyed}")
        steps, names, values = self._source.matrix(table, column, copy)
        rows = np.searchsorted(steps, self._last, side="right")
        steps, values = steps[:rows], values[:rows]
        steps.flags.writeable = values.flags.writeable = copy
        return steps, names, values

    def until(self, step: int) -> "Run":
        """The run as it was known at `step`: a diagnosis of it uses nothing later."""
        limit = step if self._limit is None else min(step, self._limit)
        meta = self.meta | {"status": "running"} if limit < self.last_step else self.meta
        return Run(self.path, meta, self._source, None, limit)
