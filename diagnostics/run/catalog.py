"""Opening runs: one by its directory, or all in a folder."""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diagnostics.run.errors import RunError
from diagnostics.run.files import Files
from diagnostics.run.memory import Frames
from diagnostics.run.metadata import RUN, SUMMARY, checked, is_alive, newer, read_meta, read_summary
from diagnostics.run.reader import Run
from diagnostics.run.storage import Stamp, Storage, storage
from diagnostics.run.streams import Damage, is_stream

_NEXT = "Next: give a folder that diagnostics.watch wrote."


def load(run_dir: str | os.PathLike) -> Run:
    """Open a run, also one that is still being written or whose process was killed. To follow it: `Run.refresh`."""
    return _open(storage(run_dir))


def runs(root: str | os.PathLike) -> list[Run]:
    """The runs in a folder, newest first. What cannot be read has the status `broken` and says why in `error`."""
    try:
        places = storage(root).directories()
    except (OSError, RunError):
        return []
    with _collector_paused():
        found = [run for place in places if (run := _listed(place))]
    return sorted(found, key=lambda run: run.meta["created"], reverse=True)


def stamp(run_dir: str | os.PathLike) -> Stamp:
    """What is there now, without opening a file: a cached run goes by it."""
    return storage(run_dir).stamp()


def unreachable(root: str | os.PathLike, *, missing_too: bool = False) -> str | None:
    """Why a folder of runs cannot be listed: no access, no back end. One that is not there yet is just empty, unless
    `missing_too`."""
    try:
        storage(root).directories()
    except FileNotFoundError:
        return "there is no such folder" if missing_too else None
    except (OSError, RunError) as error:
        return str(error)
    return None


@contextmanager
def _collector_paused() -> Iterator[None]:
    """The metadata of thousands of runs is millions of objects, none of them garbage: the cyclic collector, which goes
    through all of them again and again, took three quarters of the time of a listing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _listed(place: Storage) -> Run | None:
    try:
        files = place.files()
        return _run(place, files) if _holds_run(files) else None
    except (RunError, OSError) as error:
        return broken(str(place), str(error))


def broken(path: str, error: str) -> Run:
    """In place of a run that cannot be read."""
    meta = checked({"status": "broken", "error": error}, path.rstrip("/").rsplit("/", 1)[-1])
    return Run(path, meta, Frames({}))


def _holds_run(files: Mapping[str, int]) -> bool:
    return RUN in files or any(map(is_stream, files))


def _open(place: Storage, previous: Files | None = None) -> Run:
    try:
        files = place.files()
    except OSError as error:
        reason = "is not a directory" if isinstance(error, NotADirectoryError) else "cannot be opened"
        raise RunError(f"{place} {reason} ({error}). Next: check the path; a run is a folder with a {RUN}.") from error
    if not _holds_run(files):
        raise RunError(f"{place} holds no run: there is no {RUN}. {_NEXT}")
    return _run(place, files, previous)


def _run(place: Storage, sizes: Mapping[str, int], previous: Files | None = None) -> Run:
    """A run by its metadata alone; its streams are opened when a table is asked for."""
    meta, rotten = _meta(place, sizes)
    files = Files(place, sizes, meta["status"] == "running", rotten, previous)
    summary = read_summary(place) if SUMMARY in sizes else None
    return Run(str(place), meta, files, summary, reload=lambda: _open(place, files))


def _meta(place: Storage, files: Mapping[str, int]) -> tuple[dict[str, Any], list[Damage]]:
    """What the run says about itself; without a whole run.json, what its streams alone can tell."""
    try:
        meta = read_meta(place)
    except (OSError, ValueError) as error:
        if not any(is_stream(name) for name in files):
            raise RunError(f"{place}: {RUN} cannot be read ({error}), and no stream is there. {_NEXT}") from error
        reason = "it is missing" if RUN not in files else str(error)
        return checked({}, place.name), [Damage(RUN, 0, files.get(RUN, 0), reason)]
    if meta["status"] == "running" and not is_alive(meta):
        meta["status"] = "interrupted"
    unknown = newer(meta)
    return meta, [Damage(RUN, 0, 0, unknown)] if unknown else []
