"""Streams that are being written: which record goes into which file, and what happens when a file cannot grow."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from diagnostics.metrics import TABLES
from diagnostics.run.frames import FRAME_BYTES_MAX, PLACEHOLDER, seal
from diagnostics.run.layout import Layout, Record, column_dtype
from diagnostics.run.storage import Local, Storage
from diagnostics.run.streams import schema_copy_name, sealed_schema, stream_name, stream_number

_OPEN_STREAMS_MAX = 1024  # sets of names at a time; a set that was not seen for long gets another stream

_NO_RECORD = (ValueError, TypeError, OverflowError, pa.ArrowException)

Item = tuple[str, Record]
Refused = Callable[[str, Record, Exception], None]


@dataclass
class OpenStream:
    """`size`: how far this process wrote; a file of another length was touched by somebody else."""

    name: str
    layout: Layout
    schema: pa.Schema
    seed: int
    size: int


class Appender:
    """The streams of one session of a run, keyed by names: two alternating sets of layers keep two streams.

    `refused` is told of records that are no record: a text where a number belongs, a wrong count of values.
    """

    def __init__(self, place: Storage, session: int, first_step: int, refused: Refused):
        self._place = place
        self._session = session
        self._first_step = first_step
        self._refused = refused
        self._streams: dict[tuple, OpenStream] = {}
        self._numbers: dict[str, int] = {}  # of the next stream of a table; listing a remote folder is slow

    def write(self, items: Iterable[Item]) -> tuple[list[Item], OSError | None]:
        """Append the records; those that could not be written come back, with the reason."""
        groups: dict[tuple, list[Record]] = {}
        for table, record in items:
            groups.setdefault((table, record.names, _text(table, record)), []).append(record)
        failed: list[Item] = []
        problem = None
        for key, records in groups.items():
            try:
                self._write_group(key, records)
            except OSError as error:
                failed += [(key[0], record) for record in records]
                problem = error
            except _NO_RECORD as error:  # names or columns that no schema can hold
                for record in records:
                    self._refused(key[0], record, error)
        return failed, problem

    def _write_group(self, key: tuple, records: list[Record]) -> None:
        stream = self._streams.get(key)
        layout = _layout(key, records, stream.layout.columns if stream else ())
        if stream and stream.layout == layout and self._appended(key, stream, records):
            return
        self._create(key, layout, records)

    def _appended(self, key: tuple, stream: OpenStream, records: list[Record]) -> bool:
        """Whether the stream took the records; one that did not is left as it was, and another one follows it."""
        if not isinstance(self._place, Local):
            return False
        data = self._encoded(stream, records)
        try:
            self._place.append(stream.name, data, stream.size)
        except OSError:
            del self._streams[key]
            return False
        stream.size += len(data)
        self._streams[key] = self._streams.pop(key)  # the one used last is the last to go
        return True

    def _create(self, key: tuple, layout: Layout, records: list[Record]) -> None:
        schema = layout.schema(self._session, self._first_step)
        header = schema.serialize().to_pybytes()
        stream = OpenStream("", layout, schema, zlib.crc32(header), len(header))
        data = self._encoded(stream, records)
        if not data:
            return
        stream.name = self._created(layout.table, header + data)
        self._copy_schema(stream.name, header)
        stream.size += len(data)
        self._streams[key] = stream
        if len(self._streams) > _OPEN_STREAMS_MAX:
            del self._streams[next(iter(self._streams))]

    def _created(self, table: str, data: bytes) -> str:
        """The name of a new file with these bytes: the next free number."""
        if table not in self._numbers:
            self._numbers[table] = 1 + max(map(stream_number, self._files_of(table)), default=-1)
        while True:
            name = stream_name(table, self._numbers[table])
            try:
                self._place.create(name, data)
            except FileExistsError:
                self._numbers[table] += 1
            else:
                self._numbers[table] += 1
                return name

    def _copy_schema(self, name: str, header: bytes) -> None:
        """Best effort: the stream is whole without it."""
        if isinstance(self._place, Local):
            with suppress(OSError):
                self._place.replace(schema_copy_name(name), sealed_schema(header))

    def _files_of(self, table: str) -> list[str]:
        return [name for name in self._place.files() if name.startswith(f"{table}-")]

    def _encoded(self, stream: OpenStream, records: list[Record]) -> bytes:
        size = stream.layout.records_per_batch()
        chunks = (records[start : start + size] for start in range(0, len(records), size))
        return b"".join(self._frames(stream, chunk) for chunk in chunks)

    def _frames(self, stream: OpenStream, records: Sequence[Record]) -> bytes:
        """One frame, or two halves of it where it would be too large or holds something that is no record."""
        try:
            frame = _frame(stream, records)
            if len(frame) <= FRAME_BYTES_MAX:
                return frame
            error: Exception = ValueError(f"a record of {len(frame)} bytes")
        except _NO_RECORD as raised:
            error = raised
        if len(records) == 1:
            self._refused(stream.layout.table, records[0], error)
            return b""
        half = len(records) // 2
        return self._frames(stream, records[:half]) + self._frames(stream, records[half:])


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
    if any(len(values) != len(names or ()) for _, values in text):
        raise ValueError(f"{' and '.join(texts)} do not hold one text for each of {len(names or ())} names")
    return Layout(table, tuple(name for name in given if name != "step" and name not in texts), names, text)


def _frame(stream: OpenStream, records: Sequence[Record]) -> bytes:
    """A sealed record batch, without the schema that Arrow puts before it."""
    batch = stream.layout.encode(records, stream.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, stream.schema) as writer:
        writer.write_batch(batch, custom_metadata={"checksum": PLACEHOLDER})
        end = sink.tell()
    return seal(sink.getvalue()[stream.schema.serialize().size : end].to_pybytes(), stream.seed)
