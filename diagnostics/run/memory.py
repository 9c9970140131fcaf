"""The tables of a run that exists in memory only."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from diagnostics.metrics import TABLES
from diagnostics.run.filling import ALL_STEPS, Bounds, check_table, fill, matrix_dtype


class Frames:
    """Tables of a run in memory."""

    def __init__(self, frames: Mapping[str, pd.DataFrame]):
        for name in frames:
            check_table(name)
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

    def steps(self, table: str) -> np.ndarray:
        return np.unique(self.frame(table, ["step"], ALL_STEPS)["step"].to_numpy())

    def frame(self, table: str, columns: Sequence[str], bounds: Bounds) -> pd.DataFrame:
        frame = self._frames.get(table, pd.DataFrame({"step": np.empty(0, np.int64)}))
        frame = frame[frame["step"].between(*bounds)]
        return fill(table, {str(name): frame[name] for name in frame}, columns, len(frame))

    def matrix(self, table: str, column: str, copy: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        key = TABLES[table].key
        assert key is not None
        frame = self.frame(table, ["step", key, column], ALL_STEPS)
        steps, rows = np.unique(frame["step"].to_numpy(), return_inverse=True)
        places, names = pd.factorize(frame[key])
        values = np.full((len(steps), len(names)), np.nan, matrix_dtype(table, column))
        values[rows, places] = frame[column].to_numpy()
        return steps, np.asarray(names, object), values
