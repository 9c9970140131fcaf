"""How records become columns: the Arrow schema of one stream, and its record batches.

A flat table (`scalars`, `events`, ...) has one row a record. A keyed table (`layers`, `units`, ...) has one *record* a
step whatever the number of layers: the names lie once in the stream's schema, every statistic is one fixed-size list.
Text that belongs to a name and does not change, such as the activation function, lies beside the names.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diagnostics.metrics import TABLES

FORMAT = 1
_METADATA_KEY = b"diagnostics"
NUMPY = {"int64": np.int64, "float32": np.float32, "float64": np.float64}
_ARROW = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "list": pa.list_(pa.float64()),
}
MISSING: dict[str, Any] = {"int64": 0, "float32": np.nan, "float64": np.nan, "string": "", "list": ()}
NUMBERS_PER_BATCH = 1 << 20  # bounds what a reader holds to check one record batch


def column_dtype(table: str, column: str) -> str:
    """The vocabulary's type; further columns are numbers."""
    for metric in TABLES[table].columns:
        if metric.name == column:
            return metric.dtype
    return "float64" if TABLES[table].key is None else "float32"


@dataclass(frozen=True)
class Record:
    """What was appended for one step: `names` of a keyed table, else `None`."""

    step: int
    values: Mapping[str, Any]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """What all records of a stream have in common. `columns`: without step and key; `text`: column -> one per name."""

    table: str
    columns: tuple[str, ...]
    names: tuple[str, ...] | None = None
    text: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def schema(self, session: int, first_step: int) -> pa.Schema:
        """`session` counts the processes that wrote this run; records of earlier ones from `first_step` on are
        the abandoned branch of a resumed run. The random `id` makes every stream's checksums its own."""
        origin = {"session": session, "first_step": first_step, "id": secrets.token_hex(8)}
        description = {"format": FORMAT, "table": self.table, **origin}
        if self.names is not None:
            description |= {"names": self.names, "text": dict(self.text)}
        fields = [("step", pa.int64()), *((name, self._arrow(name)) for name in self.columns)]
        return pa.schema(fields, metadata={_METADATA_KEY: json.dumps(description)})

    def encode(self, records: Sequence[Record], schema: pa.Schema) -> pa.RecordBatch:
        steps = pa.array([record.step for record in records], pa.int64())
        return pa.record_batch([steps, *(self._column(name, records) for name in self.columns)], schema=schema)

    def records_per_batch(self) -> int:
        width = len(self.columns) * (1 if self.names is None else max(1, len(self.names)))
        return max(1, NUMBERS_PER_BATCH // max(1, width))

    def _arrow(self, column: str) -> pa.DataType:
        arrow = _ARROW[column_dtype(self.table, column)]
        return arrow if self.names is None else pa.list_(arrow, len(self.names))

    def _column(self, column: str, records: Sequence[Record]) -> pa.Array:
        dtype = column_dtype(self.table, column)
        missing = MISSING[dtype]
        values = [record.values.get(column, missing) for record in records]
        if self.names is None:
            return pa.array(values, _ARROW[dtype]) if dtype in ("string", "list") else pa.array(_numbers(values, dtype))
        absent = np.full(len(self.names), missing)
        block = np.stack([absent if value is missing else value for value in values])
        if block.shape[1:] != (len(self.names),):
            raise ValueError(f"column {column!r} holds {block.shape[1:]} values for {len(self.names)} names")
        return pa.FixedSizeListArray.from_arrays(pa.array(_cast(block, dtype).reshape(-1)), len(self.names))


def _numbers(values: list, dtype: str) -> np.ndarray:
    """NaN and infinities stay what they are: data, not gaps."""
    return np.array(values, dtype=NUMPY[dtype])


def _cast(block: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "int64" and not np.isfinite(block).all():
        raise ValueError("a count that is not finite")
    with np.errstate(over="ignore"):  # beyond float32 lies infinity, which is what the reader is to see
        return block.astype(NUMPY[dtype])


@dataclass(frozen=True)
class Origin:
    """Which session wrote a stream, and the first step that session could write."""

    session: int
    first_step: int


class Foreign(Exception):
    """An Arrow stream that is none of ours, or of a newer format."""


def read_schema(schema: pa.Schema) -> tuple[Layout, Origin]:
    """Check a schema that somebody else may have written, before any record of it is decoded."""
    try:
        description = json.loads((schema.metadata or {})[_METADATA_KEY])
        newer = int(description["format"])
        table = TABLES.get(description["table"])
        origin = Origin(int(description["session"]), int(description["first_step"]))
        names, text = description.get("names"), description.get("text", {})
        names = None if names is None else tuple(readable(name) for name in names)
        text = tuple((readable(column), tuple(map(readable, values))) for column, values in text.items())
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise Foreign("an Arrow stream that was not written by diagnostics") from None
    if newer > FORMAT:
        raise Foreign(f"written by a newer version (format {newer}, this one reads {FORMAT}); upgrade diagnostics")
    if table is None or (table.key is None) != (names is None) or schema.names[:1] != ["step"]:
        raise Foreign("an Arrow stream of a table this version does not know")
    layout = Layout(table.name, tuple(schema.names[1:]), names, text)
    _check_types(layout, schema)
    return layout, origin


def readable(value: Any) -> str:
    """JSON can hold half of a surrogate pair, and a file name any bytes: no other text can."""
    return str(value).encode("utf-8", "replace").decode()


def _check_types(layout: Layout, schema: pa.Schema) -> None:
    if len(set(schema.names)) != len(schema.names) or any(len(v) != len(layout.names or ()) for _, v in layout.text):
        raise Foreign("its schema contradicts itself")
    for column in ("step", *layout.columns):
        expected = pa.int64() if column == "step" else layout._arrow(column)
        if schema.field(column).type != expected:
            raise Foreign(f"column {column!r} has type {schema.field(column).type}, not {expected}")
