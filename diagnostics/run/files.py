"""The tables of a run on disk: streams, in the order they were written, less what a resumed run abandoned."""

import bisect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from diagnostics.metrics import TABLES
from diagnostics.run.errors import RunError
from diagnostics.run.filling import Bounds, fill, matrix_dtype
from diagnostics.run.layout import MISSING, NUMPY, column_dtype
from diagnostics.run.storage import Storage
from diagnostics.run.streams import Column, Damage, Stream, is_stream, open_stream, plain, stream_number

_CACHE_BYTES_MAX = 1 << 28  # of columns that have been read, a run
_VALUES_MAX = 1 << 28  # of a matrix: many streams with names of their own could claim far more than they hold


@dataclass
class Part:
    """Visible records of one stream: steps (T,), and column -> values (T,) or (T, L)."""

    stream: Stream
    steps: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def names(self) -> tuple[str, ...]:
        return self.stream.layout.names or ()

    def between(self, bounds: Bounds) -> "Part":
        inside = (self.steps >= bounds[0]) & (self.steps <= bounds[1])
        if inside.all():
            return self
        return Part(self.stream, self.steps[inside], {name: values[inside] for name, values in self.values.items()})


class Files:
    """The files of a snapshot: names and sizes. Streams are opened when a table is first asked for.

    `live`: the writer may be in the middle of a record, which is no damage. `rotten`: what is known to be unreadable.
    """

    def __init__(
        self,
        place: Storage,
        sizes: Mapping[str, int],
        live: bool = False,
        rotten: Sequence[Damage] = (),
        previous: "Files | None" = None,
    ):
        self.place = place
        self._sizes = {name: size for name, size in sizes.items() if is_stream(name)}
        self._live = live
        self._rotten = rotten
        self._cache: dict[tuple[str, bytes, str], Column] = dict(previous._cache) if previous else {}
        self._lock = threading.RLock()  # pages of several browsers share one run

    @cached_property
    def _opened(self) -> list[Stream | Damage]:
        return [open_stream(self.place, name, size) for name, size in self._sizes.items()]

    @cached_property
    def streams(self) -> list[Stream]:
        """In the order in which they were written."""
        streams = [stream for stream in self._opened if isinstance(stream, Stream)]
        return sorted(streams, key=lambda stream: (stream.origin.session, stream_number(stream.name)))

    def fingerprint(self) -> list:
        return sorted(self._sizes.items())

    def columns(self, table: str) -> tuple[str, ...]:
        own = [name for stream in self._of(table) for name in (*stream.layout.columns, *dict(stream.layout.text))]
        if table == "scalars":
            own += [_logged_name(name) for name in self.columns("logged")]
        return tuple(dict.fromkeys(own))

    def last_step(self) -> int:
        tables = ["scalars"] if self._of("scalars") else TABLES
        return max((int(part.steps.max()) for table in tables for part in self._parts(table, ())), default=0)

    def steps(self, table: str) -> np.ndarray:
        return np.unique(np.concatenate([np.empty(0, np.int64), *(part.steps for part in self._parts(table, ()))]))

    def frame(self, table: str, columns: Sequence[str], bounds: Bounds) -> pd.DataFrame:
        parts = [part.between(bounds) for part in self._parts(table, columns)]
        unfold = _flat if TABLES[table].key is None else _unfolded
        data, rows = unfold(table, parts, columns)
        if table == "scalars":
            data |= self._logged(data["step"], set(columns))
        frame = fill(table, data, columns, rows)
        if table == "events":
            damaged = fill(table, self._damage_events(), columns, len(self.damage))
            frame = pd.concat([frame, damaged.loc[damaged["step"].between(*bounds)]])
        return _in_order(frame)

    @cached_property
    def damage(self) -> list[Damage]:
        """What could not be read, over all streams; finding it means to verify every record."""
        for table in TABLES:
            self._parts(table, ())
        found = [damage for stream in self.streams for damage in self._cache[_key(stream, "step")].damage]
        newest = max((stream.origin.session for stream in self.streams), default=0)
        growing = {stream.name for stream in self.streams if self._live and stream.origin.session == newest}
        unreadable = [*self._rotten, *(damage for damage in self._opened if isinstance(damage, Damage))]
        return [*unreadable, *(d for d in found if not (d.torn and d.file in growing))]

    def _damage_events(self) -> dict[str, list]:
        found = self.damage
        return {
            "step": [self._step_before(damage) for damage in found],
            "kind": ["damaged"] * len(found),
            "message": [str(damage) for damage in found],
            "subject": [damage.file for damage in found],
        }

    def _step_before(self, damage: Damage) -> int:
        stream = next((stream for stream in self.streams if stream.name == damage.file), None)
        steps = self._known(stream, "step") if stream else None
        blocks = steps.blocks[: bisect.bisect_right(steps.ends, damage.offset)] if steps else []
        return int(blocks[-1][-1]) if blocks else 0

    def _logged(self, steps: np.ndarray, columns: set[str]) -> dict[str, np.ndarray]:
        """Numbers of `monitor.log` as columns of `scalars`: the last one given at each step."""
        wanted = [name for name in self.columns("logged") if _logged_name(name) in columns]
        parts = self._parts("logged", wanted) if wanted else []
        data, _ = _flat("logged", parts, ["step", *wanted]) if parts else ({}, 0)
        return {_logged_name(name): _last_given(data["step"], data[name], steps) for name in wanted if data}

    def matrix(self, table: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts, dtype = self._parts(table, (column,)), matrix_dtype(table, column)
        names = np.array(list(dict.fromkeys(name for part in parts for name in part.names)), object)
        if len(parts) == 1 and column in parts[0].values and (np.diff(parts[0].steps) > 0).all():
            return parts[0].steps.copy(), names, parts[0].values[column].astype(dtype)
        steps = np.unique(np.concatenate([np.empty(0, np.int64), *(part.steps for part in parts)]))
        self._check_size(table, column, parts, len(steps) * len(names))
        place = {name: index for index, name in enumerate(names)}
        values = np.full((len(steps), len(names)), np.nan, dtype)
        for part in parts:
            if column in part.values:
                rows = np.searchsorted(steps, part.steps)
                values[rows[:, None], [place[name] for name in part.names]] = part.values[column]
        return steps, names, values

    def _check_size(self, table: str, column: str, parts: list[Part], size: int) -> None:
        stored = sum(part.values[column].size for part in parts if column in part.values)
        if size > max(_VALUES_MAX, 2 * stored):
            raise RunError(
                f"{self.place}: {column!r} of table {table!r} would be {size} values, but {stored} are stored. "
                f"Next: read it with Run.table, which does not fill up what was not measured."
            )

    def _of(self, table: str) -> list[Stream]:
        return [stream for stream in self.streams if stream.layout.table == table]

    def _parts(self, table: str, columns: Sequence[str]) -> list[Part]:
        """Visible records, stream after stream."""
        with self._lock:
            parts = [self._part(stream, columns) for stream in self._of(table)]
        return [part for part in parts if len(part.steps)]

    def _part(self, stream: Stream, columns: Sequence[str]) -> Part:
        stored = ["step", *(name for name in columns if name in stream.layout.columns)]
        steps, *values = self._read(stream, stored)
        if any(len(value) != len(steps) for value in values):  # the file was changed, not only added to
            self._forget(stream)
            steps, *values = self._read(stream, stored)
        visible = steps < self._hidden_from(stream)
        if not visible.all():
            steps, values = steps[visible], [value[visible] for value in values]
        return Part(stream, steps, dict(zip(stored[1:], values, strict=True)))

    def _hidden_from(self, stream: Stream) -> int:
        """The first step that a later session wrote anew: from there on this stream is an abandoned branch."""
        later = (s.origin.first_step for s in self.streams if s.origin.session > stream.origin.session)
        return min(later, default=np.iinfo(np.int64).max)

    def _read(self, stream: Stream, columns: Sequence[str]) -> list[np.ndarray]:
        stale = [name for name in columns if (known := self._known(stream, name)) is None or known.size < stream.size]
        try:
            fresh = stream.read(stale, [self._known(stream, name) for name in stale]) if stale else []
        except OSError as error:
            raise RunError(
                f"{self.place}: {stream.name} can no longer be read ({error}). Next: load it anew."
            ) from error
        read = dict(zip(stale, fresh, strict=True))
        result = [_joined(read.get(name) or self._cache[_key(stream, name)], stream, name) for name in columns]
        self._keep(stream, read)
        return result

    def _keep(self, stream: Stream, read: dict[str, Column]) -> None:
        """Steps always, for they tell what is damaged; other columns while there is room."""
        for name, column in read.items():
            self._cache.pop(_key(stream, name), None)
            room = _CACHE_BYTES_MAX - sum(column.bytes for column in self._cache.values())
            if name == "step" or column.bytes <= room:
                self._cache[_key(stream, name)] = column

    def _forget(self, stream: Stream) -> None:
        for key in [key for key in self._cache if key[0] == stream.name]:
            del self._cache[key]

    def _known(self, stream: Stream, column: str) -> Column | None:
        """What an earlier snapshot read of this very file, unless the file has shrunk since."""
        known = self._cache.get(_key(stream, column))
        return known if known and known.size <= stream.size else None


def _key(stream: Stream, column: str) -> tuple[str, bytes, str]:
    """The header holds a random number: another file under an old name is another stream."""
    return stream.name, stream.header, column


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """By step; rows of one step as they were written."""
    if frame["step"].is_monotonic_increasing:
        return frame.reset_index(drop=True)
    return frame.iloc[np.argsort(frame["step"].to_numpy(), kind="stable")].reset_index(drop=True)


def _flat(table: str, parts: list[Part], columns: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
    rows = sum(len(part.steps) for part in parts)
    data = {name: _concatenated(table, name, [(p.values.get(name), len(p.steps)) for p in parts]) for name in columns}
    data["step"] = np.concatenate([part.steps for part in parts]) if parts else np.empty(0, np.int64)
    return data, rows


def _unfolded(table: str, parts: list[Part], columns: Sequence[str]) -> tuple[dict[str, np.ndarray], int]:
    """One row a step and name. This is what `matrix` avoids."""
    pieces = [_unfold(table, part, columns) for part in parts]
    counts = [len(part.steps) * len(part.names) for part in parts]
    data = {
        name: _concatenated(table, name, [(piece.get(name), rows) for piece, rows in zip(pieces, counts, strict=True)])
        for name in columns
    }
    return data, sum(counts)


def _unfold(table: str, part: Part, columns: Sequence[str]) -> dict[str, np.ndarray]:
    names, texts = part.names, dict(part.stream.layout.text)
    piece = {"step": np.repeat(part.steps, len(names))}
    for name in columns:
        if name == TABLES[table].key or name in texts:
            piece[name] = np.tile(np.array(texts.get(name, names), object), len(part.steps))
        elif name in part.values:
            piece[name] = part.values[name].reshape(-1)
    return piece


def _concatenated(table: str, column: str, pieces: list[tuple[np.ndarray | None, int]]) -> np.ndarray:
    missing, dtype = MISSING[column_dtype(table, column)], NUMPY.get(column_dtype(table, column), object)
    filled = [_constant(missing, rows, dtype) if values is None else values for values, rows in pieces]
    return np.concatenate(filled) if filled else np.empty(0, dtype)


def _constant(value: Any, rows: int, dtype: Any) -> np.ndarray:
    result = np.empty(rows, dtype)
    for_lists = isinstance(value, tuple)
    result[:] = [value] * rows if for_lists and rows else value
    return result


def _joined(column: Column, stream: Stream, name: str) -> np.ndarray:
    return column.whole if column.blocks else plain(pa.chunked_array([], stream.schema.field(name).type))


def _logged_name(name: str) -> str:
    """What the script logs never passes for what was measured."""
    return f"{name} (logged)" if name in TABLES["scalars"].names else name


def _last_given(steps: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """For each step of `at` the last value given at exactly that step, else NaN."""
    given = {int(step): value for step, value in zip(steps, values, strict=True) if value == value}
    return np.array([given.get(int(step), np.nan) for step in at])
