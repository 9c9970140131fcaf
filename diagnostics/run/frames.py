"""Frames: the messages of an Arrow IPC stream, each with a checksum of itself.

Arrow does not checksum what it stores, and a reader that trusts a torn, zero-filled or rotten file shows wrong
numbers. Every record batch therefore carries, in its custom metadata, the CRC-32 of the whole message (its own eight
digits taken as zeros) continued from the CRC-32 of the stream's schema, which is kept once more beside the stream. The
file stays a plain Arrow stream that any Arrow reader opens. Nothing here allocates by a size that a file claims: every
length is compared with the bytes at hand first.
"""

import re
import struct
import zlib
from dataclasses import dataclass

CONTINUATION = b"\xff\xff\xff\xff"
_MARK = b"crc32="
PLACEHOLDER = (_MARK + b"00000000").decode()
_BEGINNING = re.compile(rb"\xff(?=\xff{3}...[\x00-\x02])", re.DOTALL)  # with a header of at most HEADER_BYTES_MAX
_SEARCH_EFFORT_MAX = 1 << 29  # bytes; a second or less
_ATTEMPT_BYTES = 1 << 14  # what looking at one false beginning costs
_PREFIX = 8  # continuation marker and the metadata's length
HEADER_BYTES_MAX = 1 << 25  # the metadata of one message; a schema holds the names of all layers
FRAME_BYTES_MAX = 1 << 26  # one whole record batch
_RECORD_BATCH = 3  # of the flatbuffer union MessageHeader


@dataclass(frozen=True)
class Frame:
    """One message: bytes `start` to `end` of the buffer it was found in."""

    start: int
    end: int


class Damaged(Exception):
    """The bytes at this place are no whole frame. `torn`: they stop before the frame's own end. `checked`: how many
    bytes it took to find out."""

    def __init__(self, reason: str, torn: bool = False, checked: int = 0):
        super().__init__(reason)
        self.torn = torn
        self.checked = checked


def seal(message: bytes, seed: int) -> bytes:
    """The message with its checksum in place of the placeholder."""
    place = message.index(_MARK) + len(_MARK)
    return b"".join((message[:place], b"%08x" % zlib.crc32(message, seed), message[place + 8 :]))


def schema_end(buffer: memoryview) -> int:
    """Length of the schema message at the start of a stream."""
    end = _metadata_end(buffer, 0)
    if _header(buffer, 0)[0] != 1:
        raise Damaged("it does not begin with an Arrow schema")
    return end


def frame_at(buffer: memoryview, start: int, seed: int) -> Frame:
    """The verified record batch that begins at `start`. Our streams grow until they stop: they have no end marker."""
    metadata_end = _metadata_end(buffer, start)
    body_bytes = _body_bytes(buffer, start)
    end = metadata_end + body_bytes
    if end - start > FRAME_BYTES_MAX:
        raise Damaged(f"a record claims {end - start} bytes")
    if end > len(buffer):
        raise Damaged("the last record is cut off", torn=True)
    _verify(buffer, start, metadata_end, end, seed)
    return Frame(start, end)


def whole_frames(data: bytes | bytearray, start: int, seed: int) -> tuple[int, Damaged | None]:
    """How many bytes from `start` on are verified record batches, and what stops them before the end of `data`."""
    view, end = memoryview(data), start
    while end < len(data):
        try:
            end = frame_at(view, end, seed).end
        except Damaged as damaged:
            return end - start, damaged
    return end - start, None


def next_frame(data: bytes | bytearray, start: int, seed: int) -> Frame | None:
    """The first verified record batch at or after `start`, past whatever damage lies before it.

    Gives up where the data holds so many beginnings that somebody must have made them up.
    """
    view, effort = memoryview(data), 0
    for match in _BEGINNING.finditer(data, start):
        try:
            return frame_at(view, match.start(), seed)
        except Damaged as damaged:
            effort += _ATTEMPT_BYTES + damaged.checked
        if effort > _SEARCH_EFFORT_MAX:
            return None
    return None


def _metadata_end(buffer: memoryview, start: int) -> int:
    prefix = bytes(buffer[start : start + _PREFIX])
    if prefix[:4] != CONTINUATION[: len(prefix)]:
        raise Damaged("zeros where a record should begin" if not any(prefix) else "no record begins here")
    if len(prefix) < _PREFIX:
        raise Damaged("the last record is cut off", torn=True)
    (length,) = struct.unpack("<i", prefix[4:])
    if not 0 < length <= HEADER_BYTES_MAX:
        raise Damaged(f"a record claims a header of {length} bytes")
    if start + _PREFIX + length > len(buffer):
        raise Damaged("the last record is cut off", torn=True)
    return start + _PREFIX + length


def _verify(buffer: memoryview, start: int, metadata_end: int, end: int, seed: int) -> None:
    place = bytes(buffer[start:metadata_end]).find(_MARK)
    if place < 0:
        raise Damaged("a record without a checksum")
    place += start + len(_MARK)
    checksum = zlib.crc32(buffer[start:place], seed)
    checksum = zlib.crc32(buffer[place + 8 : end], zlib.crc32(b"00000000", checksum))
    if bytes(buffer[place : place + 8]) != b"%08x" % checksum:
        raise Damaged("a record's checksum does not match", checked=end - start)


def _body_bytes(buffer: memoryview, start: int) -> int:
    """Length of a record batch's body. Refuses compressed bodies, whose size in memory only the file knows."""
    kind, header, body_bytes = _header(buffer, start)
    if kind != _RECORD_BATCH or body_bytes < 0:
        raise Damaged("a message that is no record batch")
    try:
        compressed = _field(buffer, header, 3)
    except struct.error:
        raise Damaged("a record's header points outside itself") from None
    if compressed is not None:
        raise Damaged("a compressed record, which this format has none of")
    return body_bytes


def _header(buffer: memoryview, start: int) -> tuple[int, int, int]:
    """Of the flatbuffer Message at `start`: the kind of header, where it lies, the length of the body."""
    try:
        message = start + _PREFIX + struct.unpack_from("<I", buffer, start + _PREFIX)[0]
        kind, header, length = (_field(buffer, message, slot) for slot in (1, 2, 3))
        if kind is None or header is None:
            raise Damaged("a message without a header")
        body_bytes = struct.unpack_from("<q", buffer, length)[0] if length is not None else 0
        return buffer[kind], header + struct.unpack_from("<I", buffer, header)[0], body_bytes
    except (struct.error, IndexError):
        raise Damaged("a record's header points outside itself") from None


def _field(buffer: memoryview, table: int, slot: int) -> int | None:
    """Position of a flatbuffer table's field, `None` where it is absent."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, vtable)
    if 4 + 2 * slot >= size:
        return None
    (offset,) = struct.unpack_from("<H", buffer, vtable + 4 + 2 * slot)
    return table + offset if offset else None
