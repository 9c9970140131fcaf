"""run.json and summary.json: what a run says about itself, and whether its writer still lives.

Both may come from somebody else or be half rotten: sizes are bounded before they are read, and every key the package
relies on has the type it expects after `checked`.
"""

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

from diagnostics.run.layout import FORMAT, readable
from diagnostics.run.sessions import SETTINGS
from diagnostics.run.storage import JSON_BYTES_MAX, Storage
from diagnostics.run.told import NOTHING_TOLD

RUN, SUMMARY = "run.json", "summary.json"
_LISTED = {"steps", "lr", "counts", "sparkline", "worst"}  # what a list of runs shows of a summary
_SEVERITIES = ("info", "warning", "critical")
STATUSES = ("running", "finished", "failed", "interrupted", "broken")
HEARTBEAT_SECONDS = 5.0
LATEST = 9e9  # seconds since 1970, in the year 2255: of a later time pandas makes no date
STALE_SECONDS = 30.0  # six missed heartbeats: a writer that this machine cannot look up counts as dead

_DEFAULTS: dict[str, Any] = {
    "name": "",
    "status": "interrupted",
    "created": 0.0,
    "updated": 0.0,
    "optimizer": "",
    "hyperparameters": [],
    "config": {},
    "layers": [],
    "modules": [],
    "parameters": 0,
    "versions": {},
    "every": 1,
    "curvature_every": None,
    "budget": 0.0,
    "observed": [],
    "earlier": [],  # settings of the sessions before, where they were others, and the last step of each
    "writer": {},
} | NOTHING_TOLD
_LAYER = {
    "name": "",
    "shape": [],
    "parameters": 0,
    "frozen": False,
    "tied": [],
    "module": "",
    "optimized": True,
    "group": None,  # of the optimizer's; not known of a run that an earlier version wrote
}


def this_process() -> dict[str, Any]:
    """Who writes: host and process for people, `machine` and `started` to tell a reused process number."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "machine": this_machine(),
        "started": _started(os.getpid()),
    }


def is_alive(meta: dict[str, Any]) -> bool:
    """Whether the writer of a run that says `running` lives: looked up on its own machine, else by heartbeat."""
    writer = meta["writer"]
    if writer.get("machine") == this_machine() and isinstance(writer.get("pid"), int):
        return _started(writer["pid"]) == writer.get("started") is not None
    return time.time() - meta["updated"] < STALE_SECONDS


def read_meta(place: Storage) -> dict[str, Any]:
    """The checked metadata. Raises `ValueError` for what is not JSON."""
    return checked(_read_json(place, RUN), place.name)


def newer(meta: dict[str, Any]) -> str | None:
    """A sentence if a later version of this package wrote the run: what this one knows of it can still be read."""
    written = meta["versions"].get("format", FORMAT)
    if isinstance(written, int) and written <= FORMAT:
        return None
    return (
        f"the run was written by a newer version of diagnostics (format {written}, this one reads {FORMAT}): what this "
        "version does not know is left out. Next: pip install --upgrade diagnostics"
    )


def read_summary(place: Storage) -> dict[str, Any] | None:
    """summary.json, `None` where there is none or it is not whole: it can be made again from the run."""
    try:
        summary = _read_json(place, SUMMARY)
    except (OSError, ValueError):
        return None
    whole = summary.keys() >= _LISTED and all(_fits_summary(key, value) for key, value in summary.items())
    return summary if whole else None


def write_json(place: Storage, name: str, value: dict[str, Any]) -> None:
    place.replace(name, json.dumps(value, default=str).encode())


def checked(meta: dict[str, Any], name: str) -> dict[str, Any]:
    """Every key of the contract, with its type; a value of another type gives way to the default."""
    result = dict(meta)
    for key, default in _DEFAULTS.items():
        if key not in meta or not _fits(meta[key], default):
            result[key] = type(default)(default) if isinstance(default, list | dict) else default
    result["name"] = result["name"] or readable(name)
    for when in ("created", "updated"):
        result[when] = result[when] if 0 <= result[when] <= LATEST else 0.0
    if result["status"] not in STATUSES:
        result["status"] = "interrupted"
    result["layers"] = [_whole_layer(layer) for layer in result["layers"] if isinstance(layer, dict)]
    result["modules"] = [_whole_module(module) for module in result["modules"] if isinstance(module, dict)]
    result["hyperparameters"] = [group for group in result["hyperparameters"] if isinstance(group, dict)]
    result["earlier"] = [_whole_session(each) for each in result["earlier"] if isinstance(each, dict)]
    return result


def _whole_session(session: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {name: session.get(name) for name in SETTINGS}
    kept = {name: value if _fits(value, _DEFAULTS[name]) else _DEFAULTS[name] for name, value in kept.items()}
    step = session.get("last_step")
    return kept | {
        "hyperparameters": [group for group in kept["hyperparameters"] if isinstance(group, dict)],
        "last_step": step if isinstance(step, int) and is_number(step) else 0,
    }


def _whole_layer(layer: dict[str, Any]) -> dict[str, Any]:
    return layer if layer.keys() >= _LAYER.keys() else _LAYER | layer


def _whole_module(module: dict[str, Any]) -> dict[str, Any]:
    """Its name and its type are text."""
    return module | {key: module[key] if isinstance(module.get(key), str) else "" for key in ("name", "type")}


def is_number(value: Any) -> bool:
    """Finite, and no larger than a column can hold: the integers of JSON have no end."""
    if isinstance(value, bool):
        return False
    return abs(value) < 1 << 63 if isinstance(value, int) else isinstance(value, float) and math.isfinite(value)


def _fits(value: Any, default: Any) -> bool:
    if default is None or isinstance(default, bool):
        return value is None or isinstance(value, bool | int | float)
    if isinstance(default, float | int):
        return is_number(value)
    return isinstance(value, type(default))


def _fits_summary(key: str, value: Any) -> bool:
    """What lists go by has the type they expect; whatever else is there is passed on."""
    if key in ("steps", "updates", "losses", "last_told", "loss", "lr", "nonfinite_losses", "other_weights"):
        return value is None or is_number(value)
    if key == "checks":
        return value is None or (isinstance(value, list) and len(value) == 2 and all(map(is_number, value)))
    if key == "damaged":
        return isinstance(value, list) and all(map(_is_damage, value))
    if key == "ended_by":
        return isinstance(value, str)
    if key == "sparkline":
        return isinstance(value, list) and len(value) < 10_000 and all(v is None or is_number(v) for v in value)
    if key in ("counts", "events"):
        return isinstance(value, dict) and all(map(is_number, value.values()))
    return key != "worst" or value is None or _is_finding(value)


def _is_finding(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in ("kind", "summary"))
        and value.get("severity") in _SEVERITIES
        and isinstance(value.get("first_step"), int)
        and isinstance(value.get("last_step"), int | None)
    )


def _is_damage(value: Any) -> bool:
    """File, the last whole step before it, and what is wrong with it."""
    return isinstance(value, list) and [type(each) for each in value] == [str, int, str]


def _read_json(place: Storage, name: str) -> dict[str, Any]:
    data = place.read(name, 0, JSON_BYTES_MAX + 1)
    if len(data) > JSON_BYTES_MAX:
        raise ValueError(f"{name} is larger than {JSON_BYTES_MAX >> 20} MiB")
    text = data.decode()
    try:
        value = json.loads(text)
        if "\\u" in text:
            value = json.loads(readable(json.dumps(value, ensure_ascii=False)))
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} does not hold a JSON object")
    return value


def this_machine() -> str:
    """The kernel that knows this process by its number: host names and process numbers repeat across containers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> str | None:
    """When a process began, by its kernel's clock; `None` if there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _exists(pid)
    state, *rest = line.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _exists(pid: int) -> str | None:
    """Where there is no /proc, that a process has the number is all there is to know."""
    if Path("/proc/self").exists() or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "exists"
