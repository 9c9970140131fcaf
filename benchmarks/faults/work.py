"""The three kinds of work, each a function of (case, seed, folder) that leaves one file: label, record, score.

A file that exists is not made again, which makes the suite resumable; each is written under another name and then
moved, so that an interrupted worker leaves none. Scores carry a digest of the rules and are made anew when they change.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from .spec import Case, Setup

PREFIXES = 14  # causal prefixes per faulty run, spaced geometrically, besides the whole run


@dataclass(frozen=True)
class Label:
    """One seed's unwatched trainings: the verdict, when the loss shows the fault, what the reference said."""

    confirmed: bool
    reason: str
    shown_at: int | None
    ten_times_at: int | None
    reference: dict[str, int]
    losses: list[float]
    seconds: float


@dataclass(frozen=True)
class Seen:
    """One finding, as far as scoring needs it."""

    kind: str
    cause: str | None
    severity: str
    first_step: int
    last_step: int | None
    layers: list[str]
    summary: str

    @property
    def alarm(self) -> bool:
        return self.severity != "info"


@dataclass(frozen=True)
class Score:
    """One recorded run's diagnosis.

    `alarm_at`: first prefix at which the right kind was raised. `early`: whether it was raised by the update before the
    loss passed ten times its start (None where it never did, or in under ten updates).
    """

    digest: str
    findings: list[Seen] = field(default_factory=list)
    crashed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    alarm_at: int | None = None
    early: bool | None = None
    bitwise: bool | None = None
    seconds: float = 0.0


def path(out: Path, what: str, case: Case, seed: int) -> Path:
    return out / what / case.key / f"{seed}.json"


def run_dir(out: Path, case: Case, seed: int) -> Path:
    return out / "runs" / case.key / str(seed)


def _write(target: Path, values: dict) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(values))
    partial.replace(target)


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_digest(case: Case) -> str:
    """Of what a label rests on besides the training: the check asked for, and its code."""
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in ("labels.py", "reference.py"))
    return hashlib.sha256(code + repr(case.evidence).encode()).hexdigest()[:12]


def read_label(out: Path, case: Case, seed: int) -> Label | None:
    target = path(out, "labels", case, seed)
    if not target.exists():
        return None
    values = json.loads(target.read_text())
    return Label(**values["label"]) if values.get("check") == check_digest(case) else None


def label(case: Case, seed: int, out: Path) -> None:
    """Train faulty and twin unwatched and check the label."""
    if read_label(out, case, seed) is not None:
        return
    from . import labels
    from .reference import Reference
    from .train import unwatched

    began, reference = time.perf_counter(), Reference()
    with _single_thread():
        trace, training = unwatched(case.setup, seed, reference)
        twin = unwatched(case.twin, seed)[0] if case.twin else None
        verdict = labels.check(case, labels.Pair(trace, training, twin))
    ten = next((i + 1 for i, v in enumerate(trace.losses) if not v <= 10 * trace.losses[0]), None)
    made = Label(
        bool(verdict.confirmed),
        verdict.reason,
        labels.shown_at(trace, twin),
        ten,
        reference.alarms,
        trace.losses,
        time.perf_counter() - began,
    )
    _write(path(out, "labels", case, seed), {"check": check_digest(case), "label": asdict(made)})


def record(case: Case, seed: int, out: Path) -> None:
    """Train under the monitor; the run stays in the folder, so that rules can be scored again without training."""
    marker = path(out, "trained", case, seed)
    if marker.exists():
        return
    from .train import watched

    directory, began = run_dir(out, case, seed), time.perf_counter()
    shutil.rmtree(directory, ignore_errors=True)
    with _single_thread():
        losses = watched(case.setup, seed, directory, {"family": case.family, "name": case.name, "seed": seed})
    _write(marker, {"losses": losses, "seconds": time.perf_counter() - began})


@cache
def digest() -> str:
    """Of everything a diagnosis depends on: rules, store, vocabulary."""
    import diagnostics

    package = Path(diagnostics.__file__).parent
    files = [package / "metrics.py", *sorted((package / "rules").rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def read_score(out: Path, case: Case, seed: int) -> Score | None:
    target = path(out, "scores", case, seed)
    if not target.exists():
        return None
    values = json.loads(target.read_text())
    return Score(**{**values, "findings": [Seen(**finding) for finding in values["findings"]]})


def score(case: Case, seed: int, out: Path) -> None:
    """Diagnose a recorded run, and its causal prefixes where a fault was planted."""
    before = read_score(out, case, seed)
    if before is not None and before.digest == digest():
        return
    import diagnostics

    began = time.perf_counter()
    run = diagnostics.load(run_dir(out, case, seed))
    diagnosis = diagnostics.diagnose(run)
    findings = [
        Seen(f.kind, f.cause, f.severity, int(f.first_step), f.last_step, list(f.layers), f.summary)
        for f in diagnosis.findings
    ]
    labelled = read_label(out, case, seed)
    made = Score(
        digest(),
        findings,
        dict(diagnosis.crashed),
        dict(diagnosis.skipped),
        *_first_alarm(case, run, labelled),
        _bitwise(case, seed, out, labelled),
        time.perf_counter() - began,
    )
    _write(path(out, "scores", case, seed), asdict(made))


def _first_alarm(case: Case, run, labelled: Label | None) -> tuple[int | None, bool | None]:
    """First prefix with the right alarm, and whether one came before the loss had grown tenfold."""
    if case.healthy:
        return None, None
    import diagnostics

    def raised(step: int) -> bool:
        return any(f.alarm and f.kind in case.kinds for f in diagnostics.diagnose(run.until(step)).findings)

    steps = len(labelled.losses) if labelled else case.setup.steps
    grid = sorted({round(s) for s in np.geomspace(min(3, steps), steps, PREFIXES)})
    alarm_at = next((step for step in grid if raised(step)), None)
    ten = labelled.ten_times_at if labelled else None
    if ten is None or ten - onset(case.setup) < 10:
        return alarm_at, None
    return alarm_at, raised(ten - 1)


def onset(setup: Setup) -> int:
    """Updates before the schedule first takes the rate past the exact limit; 0 where the rate is constant."""
    from .optim import SCHEDULES

    factor, share = setup.schedule.build(SCHEDULES), setup.optimizer.get("of_limit", 0.0)
    return next((t for t in range(setup.steps) if share * factor(t, setup.steps) > 1), 0)


def _bitwise(case: Case, seed: int, out: Path, labelled: Label | None) -> bool | None:
    """Did watching leave every loss as it was without?"""
    marker = path(out, "trained", case, seed)
    if labelled is None or not marker.exists():
        return None
    losses = json.loads(marker.read_text())["losses"]
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(losses, labelled.losses, strict=True))


STAGES = {"label": label, "record": record, "score": score}
