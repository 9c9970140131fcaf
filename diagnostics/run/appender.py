"""Streams that are being written: which record goes into which file, and what happens when a file cannot grow."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from diagnostics.metrics import TABLES
from diagnostics.run.frames import PLACEHOLDER, seal
from diagnostics.run.layout import Layout, Record, column_dtype
from diagnostics.run.storage import Remote, Storage
from diagnostics.run.streams import stream_name, stream_number


@dataclass
class OpenStream:
    name: str
    layout: Layout
    schema: pa.Schema
    seed: int


class Appender:
    """The streams of one session of a run. Keyed by names, so that two alternating sets of layers keep two streams."""

    def __init__(self, place: Storage, session: int, first_step: int):
        self._place = place
        self._session = session
        self._first_step = first_step
        self._streams: dict[tuple, OpenStream] = {}

    def write(self, records: Iterable[tuple[str, Record]]) -> None:
        groups: dict[tuple, list[Record]] = {}
        for table, record in records:
            groups.setdefault((table, record.names, _text(table, record)), []).append(record)
        for key, group in groups.items():
            self._write_group(key, group)

    def _write_group(self, key: tuple, records: list[Record]) -> None:
        stream = self._streams.get(key)
        layout = _layout(key, records, stream.layout.columns if stream else ())
        if stream is None or stream.layout != layout or isinstance(self._place, Remote):
            schema = layout.schema(self._session, self._first_step)
            header = schema.serialize().to_pybytes()
            stream = OpenStream(self._next_name(layout.table), layout, schema, zlib.crc32(header))
            self._place.create(stream.name, header + _encoded(stream, records))
            self._streams[key] = stream
        else:
            self._place.append(stream.name, _encoded(stream, records))

    def _next_name(self, table: str) -> str:
        numbers = [stream_number(name) for name in self._place.files() if name.startswith(f"{table}-")]
        return stream_name(table, max(numbers, default=-1) + 1)


def _text(table: str, record: Record) -> tuple:
    """Text columns of a keyed table belong to the names, not to the step."""
    if record.names is None:
        return ()
    return tuple((name, value) for name, value in record.values.items() if column_dtype(table, name) == "string")


def _layout(key: tuple, records: list[Record], before: tuple[str, ...]) -> Layout:
    """Columns only ever become more: a column that is missing in one record is NaN there."""
    table, names, text = key
    given = dict.fromkeys(before or (TABLES[table].names if names is None else ()))
    for record in records:
        given |= dict.fromkeys(record.values)
    texts = {name for name, _ in text}
    return Layout(table, tuple(name for name in given if name != "step" and name not in texts), names, text)


def _encoded(stream: OpenStream, records: list[Record]) -> bytes:
    size = stream.layout.records_per_batch()
    chunks = (records[start : start + size] for start in range(0, len(records), size))
    return b"".join(_message(stream, chunk) for chunk in chunks)


def _message(stream: OpenStream, records: list[Record]) -> bytes:
    """A sealed record batch, without the schema that Arrow puts before it."""
    batch = stream.layout.encode(records, stream.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, stream.schema) as writer:
        header = stream.schema.serialize().size
        writer.write_batch(batch, custom_metadata={"checksum": PLACEHOLDER})
        end = sink.tell()
    return seal(sink.getvalue()[header:end].to_pybytes(), stream.seed)
