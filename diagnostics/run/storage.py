"""Where a run's files lie: a local directory, or any URL that fsspec opens.

A run directory may come from somebody else: only regular files directly inside it are read, links are not followed.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from diagnostics.run.errors import RunError

JSON_BYTES_MAX = 1 << 26
_CHANGED = ("mtime", "modified", "LastModified", "last_modified", "updated", "created", "ETag", "etag")  # by back end


Stamp = tuple[tuple[str, int, str], ...]  # name, size and time of change of each file: other whenever a file is


def _flag(*names: str) -> int:
    """Flags of `os.open`, those that this operating system has."""
    return sum(getattr(os, name, 0) for name in names)


_READ = _flag("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")  # without O_NONBLOCK a named pipe would block
_WRITE = _flag("O_WRONLY", "O_NOFOLLOW", "O_BINARY")


class Local:
    """A directory of the local file system. Files grow by appending; a file that is being written is never mapped."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def files(self) -> dict[str, int]:
        """Regular files and their sizes."""
        return {name: status.st_size for name, status in self._regular()}

    def stamp(self) -> Stamp:
        return tuple(sorted((name, status.st_size, str(status.st_mtime_ns)) for name, status in self._regular()))

    def directories(self) -> list["Local"]:
        with os.scandir(self.path) as entries:
            return [Local(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]

    def read(self, name: str, start: int, end: int, head: bytes = b"") -> bytearray:
        """`head`, then bytes `start` to `end`, fewer where the file is shorter. Never follows a link or waits on a
        pipe."""
        with os.fdopen(os.open(self.path / name, _READ), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{self.path / name} is not a regular file")
            data = bytearray(len(head) + max(0, min(end, status.st_size) - start))
            data[: len(head)] = head
            filled = len(head)
            file.seek(start)
            with memoryview(data) as view:
                while filled < len(data) and (count := file.readinto(view[filled:])):
                    filled += count
            del data[filled:]
            return data

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def create(self, name: str, data: bytes) -> None:
        """Write a new file whole or not at all; `FileExistsError` if there is one."""
        handle = os.open(self.path / name, _WRITE | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _write_all(handle, data)
        except OSError:
            self.remove(name)
            raise
        finally:
            os.close(handle)

    def append(self, name: str, data: bytes, size: int) -> None:
        """Add to a file that is `size` long. Opens it anew, so that a directory that vanished is noticed."""
        handle = os.open(self.path / name, _WRITE | os.O_APPEND)
        try:
            if os.fstat(handle).st_size != size:
                raise OSError(f"{self.path / name} was changed by somebody else")
            try:
                _write_all(handle, data)
            except OSError:
                os.ftruncate(handle, size)  # a part of a record is none, and takes room
                raise
        finally:
            os.close(handle)

    def replace(self, name: str, data: bytes) -> None:
        """Atomically: a reader sees the old file or the new one."""
        temporary = self.path / f".{name}.{os.getpid()}"
        try:
            handle = os.open(temporary, _WRITE | os.O_CREAT | os.O_TRUNC, 0o644)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, self.path / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def _regular(self) -> Iterator[tuple[str, os.stat_result]]:
        """Regular files; a writer's temporary one may be renamed while they are listed."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


class Remote:
    """A URL. Objects there cannot grow, so every flush writes whole, immutable ones."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        self.system, self.path = fsspec.core.url_to_fs(self.url)
        self.path = self.path.rstrip("/")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def files(self) -> dict[str, int]:
        return {_leaf(entry): entry["size"] or 0 for entry in self._entries() if entry["type"] == "file"}

    def stamp(self) -> Stamp:
        files = [entry for entry in self._entries() if entry["type"] == "file"]
        changed = [" ".join(str(entry[key]) for key in _CHANGED if key in entry) for entry in files]
        return tuple(sorted((_leaf(e), e["size"] or 0, when) for e, when in zip(files, changed, strict=True)))

    def directories(self) -> list["Remote"]:
        return [Remote(f"{self.url}/{_leaf(entry)}") for entry in self._entries() if entry["type"] == "directory"]

    def read(self, name: str, start: int, end: int, head: bytes = b"") -> bytearray:
        return bytearray(head + self._call(self.system.cat_file, f"{self.path}/{name}", start=start, end=end))

    def make(self) -> None:
        self._call(self.system.makedirs, self.path, True)

    def create(self, name: str, data: bytes) -> None:
        if self._call(self.system.exists, f"{self.path}/{name}"):
            raise FileExistsError(f"{self.url}/{name}")
        self.replace(name, data)

    def replace(self, name: str, data: bytes) -> None:
        self._call(self.system.pipe_file, f"{self.path}/{name}", data)

    def remove(self, name: str) -> None:
        if self._call(self.system.exists, f"{self.path}/{name}"):
            self._call(self.system.rm_file, f"{self.path}/{name}")

    def _entries(self) -> list[dict[str, Any]]:
        """None of a directory that is not there: an object store knows no empty ones."""
        self._call(self.system.invalidate_cache, self.path)
        try:
            return self._call(self.system.ls, self.path, True)
        except FileNotFoundError:
            return []

    def _call(self, function: Callable, *arguments: Any, **named: Any) -> Any:
        """Back ends raise what their libraries raise; the store handles one family of errors."""
        try:
            return function(*arguments, **named)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.url}: {type(error).__name__}: {error}") from error


def _leaf(entry: dict[str, Any]) -> str:
    return entry["name"].rstrip("/").rsplit("/", 1)[-1]


Storage = Local | Remote


def storage(location: str | os.PathLike) -> Storage:
    text = os.fspath(location)
    if "://" not in text:
        return Local(text)
    try:
        return Remote(text)
    except (ImportError, ValueError) as error:  # no fsspec, no back end for it, or no such protocol
        raise RunError(f"{text} cannot be opened: {error}. Next: pip install the fsspec back end it needs.") from error
