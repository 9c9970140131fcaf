"""The tables of a run on disk: streams, in the order they were written, less what a resumed run abandoned."""

import bisect
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from diagnostics.metrics import TABLES
from diagnostics.run.cache import Cache
from diagnostics.run.errors import RunError
from diagnostics.run.filling import Bounds, fill, matrix_dtype
from diagnostics.run.parts import Part, columns_of, distinct, in_order, last_given
from diagnostics.run.storage import Storage
from diagnostics.run.streams import Column, Damage, Stream, is_stream, open_stream, stream_number

_VALUES_MAX = 1 << 28  # of a matrix: many streams with names of their own could claim far more than they hold


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
        self._cache = Cache(previous._cache if previous else None)
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
        return sorted([name, size] for name, size in self._sizes.items())  # lists, as JSON has them

    def columns(self, table: str) -> tuple[str, ...]:
        own = [name for stream in self._of(table) for name in (*stream.layout.columns, *dict(stream.layout.text))]
        if table == "scalars":
            own += [_logged_name(name) for name in self.columns("logged")]
        return tuple(dict.fromkeys(own))

    def last_step(self) -> int:
        tables = ["scalars"] if self._of("scalars") else TABLES
        return max((int(part.steps.max()) for table in tables for part in self._parts(table, ())), default=0)

    def steps(self, table: str) -> np.ndarray:
        return distinct([part.steps for part in self._parts(table, ())])

    def frame(self, table: str, columns: Sequence[str], bounds: Bounds) -> pd.DataFrame:
        data = columns_of(table, [part.between(bounds) for part in self._parts(table, columns)], columns)
        if table == "scalars":
            data |= self._logged(data["step"], set(columns))
        frame = fill(table, data, columns, len(data["step"]))
        if table == "events":
            damaged = fill(table, self._damage_events(), columns, len(self.damage))
            frame = pd.concat([frame, damaged.loc[damaged["step"].between(*bounds)]], ignore_index=True)
        return in_order(frame)

    @cached_property
    def damage(self) -> list[Damage]:
        """What could not be read, over all streams; finding it means to verify every record."""
        for table in TABLES:
            self._parts(table, ())
        found = [damage for stream in self.streams for damage in self._steps(stream).damage]
        newest = max((stream.origin.session for stream in self.streams), default=0)
        growing = {stream.name for stream in self.streams if self._live and stream.origin.session == newest}
        opened = [each.rotten if isinstance(each, Stream) else each for each in self._opened]
        unreadable = [*self._rotten, *(damage for damage in opened if damage)]
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
        if stream is None:
            return 0
        steps = self._steps(stream)
        blocks = steps.blocks[: bisect.bisect_right(steps.ends, damage.offset)]
        return int(blocks[-1][-1]) if blocks else 0

    def _logged(self, steps: np.ndarray, columns: set[str]) -> dict[str, np.ndarray]:
        """Numbers of `monitor.log` as columns of `scalars`: the last one given at each step."""
        wanted = [name for name in self.columns("logged") if name != "step" and _logged_name(name) in columns]
        data = columns_of("logged", self._parts("logged", wanted), wanted) if wanted else {}
        return {_logged_name(name): last_given(data["step"], data[name], steps) for name in wanted if name in data}

    def matrix(self, table: str, column: str, copy: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        parts, dtype = self._parts(table, (column,)), matrix_dtype(table, column)
        names = np.array(list(dict.fromkeys(name for part in parts for name in part.names)), object)
        if len(parts) == 1 and column in parts[0].values and (np.diff(parts[0].steps) > 0).all():
            steps = parts[0].steps
            return steps.copy() if copy else steps, names, parts[0].values[column].astype(dtype, copy=copy)
        steps = distinct([part.steps for part in parts])
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
        steps, *values = (column.whole for column in self._read(stream, stored))
        if any(len(value) != len(steps) for value in values):  # the file was changed, not only added to
            self._cache.forget(stream)
            steps, *values = (column.whole for column in self._read(stream, stored))
        part = Part(
            steps, dict(zip(stored[1:], values, strict=True)), stream.layout.names or (), dict(stream.layout.text)
        )
        abandoned = self._abandoned_from(stream)
        return part if abandoned is None else part.where(steps < abandoned)

    def _abandoned_from(self, stream: Stream) -> int | None:
        """The first step that a later session wrote anew: from there on this stream is an abandoned branch."""
        later = (s.origin.first_step for s in self.streams if s.origin.session > stream.origin.session)
        return min(later, default=None)

    def _steps(self, stream: Stream) -> Column:
        with self._lock:
            return self._read(stream, ["step"])[0]

    def _read(self, stream: Stream, columns: Sequence[str]) -> list[Column]:
        """Columns of a stream; from its file only what is not known yet.

        Checking a record means to read all of it. So the first pass brings all that the cache has room for.
        """
        known = {name: column for name in columns if (column := self._cache.get(stream, name))}
        stale = [name for name in columns if name not in known or known[name].size < stream.size]
        if stale and not known.keys() & set(stale):
            stale += self._cache.room_beside(stream, stale)
        try:
            fresh = stream.read(stale, [known.get(name) for name in stale]) if stale else []
        except OSError as error:
            text = f"{self.place}: {stream.name} can no longer be read ({error}). Next: load the run anew."
            raise RunError(text) from error
        for name, column in zip(stale, fresh, strict=True):
            known[name] = column
            self._cache.put(stream, name, column)
        return [known[name] for name in columns]


def _logged_name(name: str) -> str:
    """What the script logs never passes for what was measured."""
    return f"{name} (logged)" if name in TABLES["scalars"].names else name
