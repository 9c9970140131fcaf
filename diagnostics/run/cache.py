"""Columns that have been read, kept within bounds, so that a page that is drawn again reads nothing again."""

from collections.abc import Sequence

from diagnostics.run.streams import Column, Stream

KEYED_BYTES_MAX = 1 << 28  # of statistics per layer, unit or feature: three columns of 100,000 x 200 values

Key = tuple[str, bytes, str]


class Cache:
    """Columns of flat tables always, they are small and tell what is damaged; of keyed tables those used last."""

    def __init__(self, previous: "Cache | None" = None):
        self._flat: dict[Key, Column] = dict(previous._flat) if previous else {}
        self._keyed: dict[Key, Column] = dict(previous._keyed) if previous else {}

    def get(self, stream: Stream, name: str) -> Column | None:
        """What an earlier snapshot read of this very file, unless the file has shrunk since."""
        key = _key(stream, name)
        if key in self._keyed:
            self._keyed[key] = self._keyed.pop(key)
        known = self._flat.get(key) or self._keyed.get(key)
        return known if known and known.size <= stream.size else None

    def put(self, stream: Stream, name: str, column: Column) -> None:
        if stream.layout.names is None or name == "step":
            self._flat[_key(stream, name)] = column
            return
        self._keyed[_key(stream, name)] = column
        used = sum(kept.bytes for kept in self._keyed.values())
        while used > KEYED_BYTES_MAX:
            used -= self._keyed.pop(next(iter(self._keyed))).bytes

    def room_beside(self, stream: Stream, columns: Sequence[str]) -> list[str]:
        """What else of a stream to keep when these columns of it are read: all of a flat table, few of a keyed one."""
        others = [
            name for name in ("step", *stream.layout.columns) if name not in columns and not self.get(stream, name)
        ]
        if stream.layout.names is None:
            return others
        each = stream.size // max(1, len(stream.layout.columns))
        return others[
            : max(0, KEYED_BYTES_MAX // 2 // max(1, each) - len([name for name in columns if name != "step"]))
        ]

    def forget(self, stream: Stream) -> None:
        for columns in (self._flat, self._keyed):
            for key in [key for key in columns if key[0] == stream.name]:
                del columns[key]


def _key(stream: Stream, name: str) -> Key:
    """The header holds a random number: another file under an old name is another stream."""
    return stream.name, stream.header, name
