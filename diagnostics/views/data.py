"""Where the pages get their runs: the folder, the listing, and loads cached by what is on disk.

The only module with caches. A run that grows gets a new key with each change, so every cache is bounded.
"""

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any
from weakref import ref

import streamlit as st

from diagnostics import rules
from diagnostics.rules import VERSION, Diagnosis
from diagnostics.run import Run, Stamp, cached_summary, is_alive, load, readable, runs, stamp, summarize
from diagnostics.views import kept

SAMPLES = Path(__file__).resolve().parents[2] / "sample_runs"
HASHED: dict[str | type, Callable[[Any], Any]] = {
    str: lambda text: text.encode("utf-8", "surrogatepass"),  # a file name need not be UTF-8
    FunctionType: lambda f: (f.__module__, f.__qualname__),
}
_followed: dict[str, tuple[Stamp, "ref[Run]"]] = {}  # runs being written, as they were last opened


@dataclass(frozen=True)
class Entry:
    """A listed run. `id` names it in the address bar: a name to look up in the listing, never a path to open."""

    id: str
    path: str
    sample: bool


def folder() -> str:
    """`streamlit run dashboard.py -- DIR`, else DIAGNOSTICS_RUNS, else ./runs. A directory, or a URL for fsspec."""
    given = sys.argv[1:] if Path(sys.argv[0]).name == "dashboard.py" else []
    chosen = given[0] if given else os.environ.get("DIAGNOSTICS_RUNS") or "runs"
    return chosen if "://" in chosen else str(Path(chosen).expanduser())


@st.cache_resource(ttl=2, max_entries=4, show_spinner=False, hash_funcs=HASHED)
def listing(root: str) -> list[tuple[Entry, Run]]:
    """Runs of the folder, then the sample runs; newest first within each."""
    own = [(Entry(_id(run), run.path, False), run) for run in runs(root)]
    return own + [(Entry(f"sample/{_id(run)}", run.path, True), run) for run in runs(SAMPLES)]


def _id(run: Run) -> str:
    """A run lies directly in its folder, which may be a URL."""
    return readable(Path(run.path).name)


def entries() -> dict[str, tuple[Entry, Run]]:
    return {entry.id: (entry, run) for entry, run in listing(folder())}


@dataclass(frozen=True)
class State:
    """What the caches below go by: a run's files, and its status, because a writer that is killed changes no file."""

    files: Stamp
    status: str


def _still_so(run: Run) -> bool:
    """Whether a run that trained when it was opened still does."""
    return run.meta["status"] != "running" or is_alive(run.meta)


@st.cache_resource(max_entries=12, show_spinner=False, validate=_still_so, hash_funcs=HASHED)
def opened(path: str, on_disk: Stamp) -> Run:
    """The run as it is on disk. Its tables are shared by all sessions: never write to them.

    Of a run that is still being written only what is new is read, and only the newest state is kept.
    """
    files, before = _followed.pop(path, (on_disk, None))
    known = before() if before else None
    run = known.refresh() if known else load(path)
    if files != on_disk:
        opened.clear(path, files)
    if run.meta["status"] == "running":
        _followed[path] = on_disk, ref(run)
    return run


def current(path: str) -> tuple[Run, State]:
    """The run as it is now, and what its caches go by."""
    files = stamp(path)
    run = opened(path, files)
    return run, State(files, run.meta["status"])


@st.cache_data(max_entries=200, show_spinner=False, hash_funcs=HASHED)
def diagnosis(path: str, state: State) -> Diagnosis:
    return kept.diagnosis(opened(path, state.files))


@st.cache_data(max_entries=200, show_spinner=False, hash_funcs=HASHED)
def verdict(path: str, state: State) -> rules.Verdict:
    """Of what can be read of the run now: its own summary knows nothing of damage since."""
    run = opened(path, state.files)
    return rules.verdict(summarize(run, diagnosis(path, state)), run.meta["status"])


@st.cache_data(max_entries=60, show_spinner=False, hash_funcs=HASHED)
def derived(path: str, state: State, function: Callable[..., Any], *args: Any) -> Any:
    """`function(run, *args)`, once for a state of the run: what a page shows of a long run takes a while to work out.
    The result is copied to each page."""
    return function(opened(path, state.files), *args)


@st.cache_resource
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "ahead")


def ahead(work: Callable[[], Any]) -> None:
    """Fill the caches above in the background, with what the next click will ask for."""
    _worker().submit(work)


@st.cache_data(max_entries=2000, show_spinner=False, hash_funcs=HASHED)
def summary(path: str, state: State) -> dict:
    """Counts, worst finding and sparkline: what the run wrote at its close, or made here if it never closed or was
    diagnosed by other rules than today's."""
    run = opened(path, state.files)
    if run.meta["status"] == "running":
        return summarize(run, diagnosis(path, state), str(VERSION))
    return cached_summary(run, kept.diagnosis, str(VERSION))


@dataclass(frozen=True)
class Example:
    """A sample run, the alarm it must show, and the run that cures it; as listed ids."""

    fault: str
    cure: str | None
    kind: str
    cause: str | None


@st.cache_data(ttl=60, max_entries=1, show_spinner=False)
def examples() -> list[Example]:
    """What each sample run was recorded to show, from the expectation beside it."""
    found = []
    for file in sorted(SAMPLES.glob("*/expected.json")):
        expected = json.loads(file.read_text())
        cure = expected.get("cure")
        for alarm in expected["alarms"]:
            named = f"sample/{cure}" if cure else None
            found.append(Example(f"sample/{file.parent.name}", named, alarm["kind"], alarm.get("cause")))
    return found


def example(kind: str, cause: str | None) -> Example | None:
    """The sample run with the same fault; of the same cause if there is one."""
    same = [found for found in examples() if found.kind == kind]
    return next((found for found in same if found.cause == cause), same[0] if same else None)
