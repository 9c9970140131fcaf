"""What a reader worked out about a run, kept in a cache outside the runs folder until the run changes."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from diagnostics.run.reader import Run

FILES_MAX = 10_000  # of a kind; with fewer than a folder has runs, each listing would make all of them anew

log = logging.getLogger("diagnostics")


def key(run: Run, *also: Any) -> str:
    """Changes with the run's records, when another run takes its place, and with `also`."""
    text = json.dumps([run.path, run.meta["created"], run.fingerprint(), *also])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recall(kind: str, key: str) -> Any:
    """What was kept as JSON; `None` if it is not there, or not whole."""
    try:
        return json.loads((_folder(kind) / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None


def keep(kind: str, key: str, value: Any) -> None:
    file = _folder(kind) / f"{key}.json"
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value))
        temporary.replace(file)
        _prune(file.parent)
    except OSError as error:  # a home that cannot be written: it will be made again next time
        log.info("%s are not cached: %s", kind, error)


def _prune(folder: Path) -> None:
    files = list(folder.iterdir())
    if len(files) > FILES_MAX:
        for oldest in sorted(files, key=lambda file: file.stat().st_mtime_ns)[: len(files) - FILES_MAX]:
            oldest.unlink(missing_ok=True)


def _folder(kind: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diagnostics" / kind
