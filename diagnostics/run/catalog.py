"""Opening runs: one by its directory, or all in a folder."""

import os
from typing import Any

from diagnostics.run.errors import RunError
from diagnostics.run.files import Files
from diagnostics.run.memory import Frames
from diagnostics.run.metadata import RUN, SUMMARY, checked, is_alive, read_meta, read_summary
from diagnostics.run.reader import Run
from diagnostics.run.storage import Storage, storage
from diagnostics.run.streams import Damage, is_stream

_NEXT = "Next: give a folder that diagnostics.watch wrote, or remove this one."


def load(run_dir: str | os.PathLike) -> Run:
    """Open a run, also one that is still being written or whose process was killed. To follow it: `Run.refresh`."""
    return _open(storage(run_dir))


def runs(root: str | os.PathLike) -> list[Run]:
    """The runs in a folder, newest first. What cannot be read has the status `broken` and says why in `error`."""
    try:
        places = storage(root).directories()
    except (OSError, RunError):
        return []
    found = [run for place in places if (run := _listed(place))]
    return sorted(found, key=lambda run: run.meta["created"], reverse=True)


def _listed(place: Storage) -> Run | None:
    try:
        return _open(place) if _looks_like_run(place) else None
    except (RunError, OSError) as error:
        return broken(str(place), str(error))


def broken(path: str, error: str) -> Run:
    """In place of a run that cannot be read."""
    meta = checked({"status": "broken", "error": error}, path.rstrip("/").rsplit("/", 1)[-1])
    return Run(path, meta, Frames({}))


def _looks_like_run(place: Storage) -> bool:
    return any(name == RUN or is_stream(name) for name in place.files())


def _open(place: Storage, previous: Files | None = None) -> Run:
    try:
        names = place.files()
    except OSError as error:
        reason = "is not a directory" if isinstance(error, NotADirectoryError) else "cannot be opened"
        raise RunError(f"{place} {reason} ({error}). Next: check the path; a run is a folder with a {RUN}.") from error
    if not _looks_like_run(place):
        raise RunError(f"{place} holds no run: there is no {RUN}. {_NEXT}")
    meta, rotten = _meta(place, names)
    files = Files(place, meta["status"] == "running", previous, rotten)
    summary = read_summary(place) if SUMMARY in names else None
    return Run(str(place), meta, files, summary, reload=lambda: _open(place, files))


def _meta(place: Storage, files: dict[str, int]) -> tuple[dict[str, Any], list[Damage]]:
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
    return meta, []
