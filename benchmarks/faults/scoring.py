"""From labels and scores to rates: which configurations count, and what a diagnosis got right on them.

The unit is the configuration: each counts with the share of its seeds. "Right" is decided on alarms alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from . import labels
from .reference import MEANS
from .spec import Case, half
from .work import Label, Score, read_label, read_score

WEAKEST = 1


@dataclass(frozen=True)
class Dropped:
    """A configuration whose label its own trainings do not confirm, and why."""

    case: Case
    confirmed: int
    seeds: int
    reason: str


def sift(cases: Iterable[Case], seeds: Iterable[int], out: Path) -> tuple[list[Case], list[Dropped]]:
    """Configurations that keep their label, and those that do not."""
    kept, dropped, seeds = [], [], list(seeds)
    for case in cases:
        known = [found for seed in seeds if (found := read_label(out, case, seed)) is not None]
        if known and labels.kept([labels.Verdict(v.confirmed, v.reason) for v in known]):
            kept.append(case)
        elif known:
            reason = next(v.reason for v in known if not v.confirmed)
            dropped.append(Dropped(case, sum(v.confirmed for v in known), len(known), reason))
    return kept, dropped


def right(case: Case, score: Score) -> bool:
    return any(f.alarm and f.kind in case.kinds for f in score.findings)


def right_cause(case: Case, score: Score) -> bool:
    return any(f.alarm and f.kind in case.kinds and (not case.causes or f.cause in case.causes) for f in score.findings)


def extras(case: Case, score: Score) -> list[str]:
    """Alarms beside the right kind that the planted fault does not bring along."""
    return [f.kind for f in score.findings if f.alarm and f.kind not in (*case.kinds, *case.may)]


def reference_row(case: Case, label: Label) -> dict[str, object]:
    """The published thresholds' answer on the same training."""
    kinds = [MEANS[name] for name in label.reference]
    return {
        "reference_alarm": bool(kinds),
        "reference_right": any(set(stands_for) & set(case.kinds) for stands_for in kinds),
        "reference_extras": sum(not set(stands_for) & {*case.kinds, *case.may} for stands_for in kinds),
    }


def row(case: Case, seed: int, label: Label, score: Score) -> dict[str, object]:
    """One run of the table `runs.csv`."""
    alarms = [f for f in score.findings if f.alarm]
    return {
        "family": case.family,
        "name": case.name,
        "key": case.key,
        "half": half(case),
        "rung": case.rung,
        "seed": seed,
        "healthy": case.healthy,
        "expected": "|".join(case.kinds),
        "expected_cause": "|".join(case.causes),
        "alarms": "|".join(f"{f.kind}/{f.cause or '-'}" for f in alarms),
        "infos": "|".join(f.kind for f in score.findings if not f.alarm),
        "alarm": bool(alarms),
        "right": right(case, score),
        "cause": right_cause(case, score),
        "extras": len(extras(case, score)),
        "alarm_at": score.alarm_at,
        "shown_at": label.shown_at,
        "ten_times_at": label.ten_times_at,
        "early": score.early,
        "bitwise": score.bitwise,
        "crashed": "|".join(score.crashed),
        "skipped": "|".join(score.skipped),
        **reference_row(case, label),
        "optimizer": case.setup.optimizer.name,
        "architecture": case.setup.model.name,
        "data": case.setup.data.name,
        "summary": " || ".join(f.summary for f in alarms),
        "steps": case.setup.steps,
    }


def table(cases: Iterable[Case], seeds: Iterable[int], out: Path) -> pd.DataFrame:
    """All scored runs of the kept configurations."""
    pairs = [(case, seed) for case in cases for seed in seeds]
    found = [(c, s, read_label(out, c, s), read_score(out, c, s)) for c, s in pairs]
    return pd.DataFrame([row(c, s, label, score) for c, s, label, score in found if label and score])


def by_configuration(runs: pd.DataFrame) -> pd.DataFrame:
    """Shares over the seeds of each configuration; the columns that a diagnosis earns only where it alarmed are NaN
    elsewhere."""
    runs = runs.assign(
        right_of_alarms=runs["right"].where(runs["alarm"]).astype(float),
        cause_of_right=runs["cause"].where(runs["right"]).astype(float),
        early=runs["early"].map({True: 1.0, False: 0.0}).astype(float),
        lead=(runs["shown_at"] - runs["alarm_at"]).astype(float),
    )
    columns = [
        "alarm",
        "right",
        "right_of_alarms",
        "cause",
        "cause_of_right",
        "extras",
        "early",
        "alarm_at",
        "shown_at",
        "lead",
        "reference_alarm",
        "reference_right",
        "reference_extras",
    ]
    keys = ["family", "name", "half", "rung", "healthy", "expected"]
    return (
        runs.groupby(keys, sort=False)[columns]
        .agg(lambda v: np.nanmean(v.astype(float)) if v.notna().any() else np.nan)
        .reset_index()
    )
