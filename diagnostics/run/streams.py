"""Reading one stream file: its schema once, then the columns asked for, every record batch verified on the way."""

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from diagnostics.run.frames import FRAME_BYTES_MAX, HEADER_BYTES_MAX, Damaged, next_frame, schema_end, whole_frames
from diagnostics.run.layout import Foreign, Layout, Origin, read_schema
from diagnostics.run.storage import Local, Storage

_NAME = re.compile(r"([a-z]+)-(\d{4,9})\.arrows")
_HEADER_BYTES = 1 << 16  # enough for the schema of most streams in one read
# Read at a time: memory is bounded by what is kept, not by the file. Larger blocks go back to the system each time they
# are freed, and faulting their pages in again takes longer than all the rest.
_BLOCK_BYTES = 1 << 24
_SEARCH_BYTES = (1 << 20, 2 * FRAME_BYTES_MAX)  # how far behind damage the next whole record is looked for
MENDED = " was used"  # ends what is said of damage by which nothing is lost
_DAMAGES_MAX = 1_000  # places in one file; behind them nothing more is looked for


def stream_name(table: str, number: int) -> str:
    return f"{table}-{number:04d}.arrows"


def schema_copy_name(name: str) -> str:
    """The file beside a stream that holds its schema once more: every record behind a rotten one would be lost."""
    return f"{name.removesuffix('.arrows')}.schema"


def sealed_schema(header: bytes) -> bytes:
    return header + struct.pack("<I", zlib.crc32(header))


def is_stream(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def stream_number(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match[2]) if match else -1


@dataclass(frozen=True)
class Damage:
    """Bytes that hold no whole record; none where a file is whole and only partly understood.

    `torn`: the file merely stops within a record, as it does while it grows or after a kill.
    """

    file: str
    offset: int
    bytes: int
    reason: str
    torn: bool = False

    def __str__(self) -> str:
        if not self.bytes:
            return f"{self.file}: {self.reason}"
        return f"{self.file}: {self.bytes} bytes from offset {self.offset} cannot be read: {self.reason}"


class Column:
    """What has been read of one column of a file that was `size` long: blocks of values, and the offset behind each.

    `empty` has the type and shape of a block without rows.
    """

    def __init__(
        self, blocks: list[np.ndarray], ends: list[int], size: int, damage: tuple[Damage, ...], empty: np.ndarray
    ):
        self.empty = empty
        self.blocks = blocks
        self.ends = ends
        self.size = size
        self.damage = damage

    @property
    def bytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    @cached_property
    def whole(self) -> np.ndarray:
        """All values in one array, of which the blocks become parts, so that they are kept only once."""
        if len(self.blocks) < 2:
            return self.blocks[0] if self.blocks else self.empty
        joined = np.concatenate(self.blocks)
        self.blocks = np.split(joined, np.cumsum([len(block) for block in self.blocks[:-1]]))
        return joined


@dataclass
class Stream:
    """A stream file as it was when the run was opened: the first `size` bytes of it. `rotten`: its own schema was, and
    `header` is the copy."""

    place: Storage
    name: str
    size: int
    layout: Layout
    origin: Origin
    schema: pa.Schema
    header: bytes
    rotten: Damage | None = None

    def read(self, columns: Sequence[str], known: Sequence[Column | None]) -> list[Column]:
        """These columns up to `size`: what is `known` of them, and only what is new read from the file."""
        starts = {column.ends[-1] if column and column.ends else len(self.header) for column in known}
        if len(starts) > 1:
            known, starts = [None] * len(columns), {len(self.header)}
        start, first = starts.pop(), known[0]
        blocks = [list(column.blocks) if column else [] for column in known]
        ends = list(first.ends) if first else []
        damage = [damage for damage in first.damage if damage.offset < start] if first else []
        for values, end in self._values(columns, start, damage):
            ends.append(end)
            for column, block in zip(blocks, values, strict=True):
                column.append(block)
        empty = [plain(pa.chunked_array([], self.schema.field(name).type)) for name in columns]
        return [Column(b, ends, self.size, tuple(damage), e) for b, e in zip(blocks, empty, strict=True)]

    def _values(
        self, columns: Sequence[str], start: int, damage: list[Damage]
    ) -> Iterator[tuple[list[np.ndarray], int]]:
        """Values of the columns and the offset behind them, a block of the file at a time."""
        options = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name) for name in columns])
        for offset, end, block in self._whole_blocks(start, damage):
            try:
                table = pa.ipc.open_stream(pa.py_buffer(block), options=options).read_all()
                table.validate(full=True)
                values = [plain(table.column(name)) for name in columns]
            except (pa.ArrowException, ValueError, OverflowError) as error:  # its author knew how to make the checksum
                damage.append(Damage(self.name, offset, end - offset, str(error)))
            else:
                yield values, end

    def _whole_blocks(self, start: int, damage: list[Damage]) -> Iterator[tuple[int, int, memoryview]]:
        """Runs of verified record batches: from and to which offset, and the bytes, behind the schema so that Arrow
        decodes them in one go. What lies between them is `damage`."""
        head, window = len(self.header), _BLOCK_BYTES
        while start < self.size:
            data = self.place.read(self.name, start, min(self.size, start + window), self.header)
            used, problem = whole_frames(data, head, self.seed)
            if used:
                yield start, start + used, memoryview(data)[: head + used]
            elif problem is None:  # the file is shorter than it was when the run was opened
                return
            cut_by_window = problem is not None and problem.torn and start + len(data) - head < self.size
            start += used
            if cut_by_window and (used or window < FRAME_BYTES_MAX):
                window = _BLOCK_BYTES if used else FRAME_BYTES_MAX
            elif problem:
                found = self._damage_at(start, problem, len(damage) >= _DAMAGES_MAX)
                damage.append(found)
                start += found.bytes

    @cached_property
    def seed(self) -> int:
        """Where the checksums of this stream's record batches start from."""
        return zlib.crc32(self.header)

    def _damage_at(self, start: int, problem: Damaged, hopeless: bool) -> Damage:
        """What lies from `start` to the next whole record, or to the end. The next record is mostly near."""
        frame = None
        for length in () if hopeless else _SEARCH_BYTES:
            frame = next_frame(self.place.read(self.name, start, min(self.size, start + length)), 1, self.seed)
            if frame or start + length >= self.size:
                break
        length = frame.start if frame else self.size - start
        return Damage(self.name, start, length, str(problem), problem.torn and frame is None)


def open_stream(place: Storage, name: str, size: int) -> Stream | Damage:
    """A stream by its schema alone; `Damage` for a file that is none of ours."""
    rotten = None
    try:
        copy = _schema_copy(place, name, size)
        header = copy or _read_header(place, name, size)
        if copy:
            rotten = Damage(name, 0, len(copy), f"its schema is rotten; the copy in {schema_copy_name(name)}{MENDED}")
        schema = pa.ipc.read_schema(pa.py_buffer(header))
        layout, origin = read_schema(schema)
        if not name.startswith(f"{layout.table}-"):
            raise Foreign(f"a stream of table {layout.table!r} under another name")
    except Damaged as damaged:
        return Damage(name, 0, size, str(damaged) if size else "the file is empty", damaged.torn or size == 0)
    except (Foreign, OSError, ValueError, OverflowError, pa.ArrowException) as error:
        return Damage(name, 0, size, str(error))
    return Stream(place, name, size, layout, origin, schema, header, rotten)


def _schema_copy(place: Storage, name: str, size: int) -> bytes | None:
    """The copy, where it is whole, the stream begins differently, and a record behind it is sealed with the copy."""
    if not isinstance(place, Local):  # objects are immutable, and their store checks them itself
        return None
    try:
        data = bytes(place.read(schema_copy_name(name), 0, HEADER_BYTES_MAX))
    except OSError:  # a run of an earlier version has none
        return None
    header, end = data[:-4], len(data) - 4
    if end <= 0 or data != sealed_schema(header) or place.read(name, 0, min(size, end)) == header:
        return None
    records = place.read(name, end, min(size, end + _SEARCH_BYTES[-1]))
    return header if next_frame(records, 0, zlib.crc32(header)) else None


def _read_header(place: Storage, name: str, size: int) -> bytes:
    for length in (_HEADER_BYTES, HEADER_BYTES_MAX):
        data = bytes(place.read(name, 0, min(size, length)))
        try:
            return data[: schema_end(memoryview(data))]
        except Damaged as damaged:
            if not damaged.torn or len(data) == size:
                raise
    raise Damaged(f"its schema is longer than {HEADER_BYTES_MAX} bytes")


def plain(column: pa.ChunkedArray) -> np.ndarray:
    """Values as NumPy holds them: (T,), or (T, L) of fixed-size lists. This format has no nulls."""
    if column.null_count:
        raise ValueError("a record with nulls, which this format has none of")
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        empty = np.empty(0, kind.value_type.to_pandas_dtype())
        return np.concatenate([empty, *map(_values, column.chunks)]).reshape(len(column), kind.list_size)
    if pa.types.is_list(kind):
        lists = np.empty(len(column), object)
        for row, values in enumerate(column.to_pylist()):
            lists[row] = values
        return lists
    return np.array(column.to_numpy())  # a copy, which does not keep the block of the file it was decoded from


def _values(chunk: pa.FixedSizeListArray) -> np.ndarray:
    values = chunk.flatten()
    if values.null_count:
        raise ValueError("a record with nulls, which this format has none of")
    return values.to_numpy(zero_copy_only=False)
