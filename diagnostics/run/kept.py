"""What a reader worked out about a run, kept in a cache outside the runs folder until the run changes."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from diagnostics.run.reader import Run

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
    except OSError as error:  # a home that cannot be written: it will be made again next time
        log.info("%s are not cached: %s", kind, error)


def _folder(kind: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diagnostics" / kind
