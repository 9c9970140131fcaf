"""What a list of runs shows without opening a stream: made once at close, or once by the reader for a killed run."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from diagnostics.run import kept
from diagnostics.run.buckets import bucketed
from diagnostics.run.metadata import is_number
from diagnostics.run.reader import Run
from diagnostics.run.streams import MENDED
from diagnostics.run.untold import not_told
from diagnostics.run.warned import other_weights

SPARKLINE_POINTS = 60
_NEW = {
    "updates",
    "losses",
    "checks",
    "ended_by",
    "damaged",
    "last_told",
    "other_weights",
}  # which those of earlier versions lack


def summarize(run: Run, diagnosis: Any = None, rules_version: str = "") -> dict[str, Any]:
    """Counts, worst finding, what could be judged, rule version and a sparkline of the loss, as JSON. `diagnosis`: a
    `rules.Diagnosis`."""
    scalars = run.table("scalars", ["step", "loss", "lr", "grad_norm"])
    events = run.table("events")
    loss = scalars["loss"].to_numpy()
    line = bucketed(scalars["step"].to_numpy(), loss, count=SPARKLINE_POINTS).last
    findings = diagnosis.findings if diagnosis else ()
    return {
        "steps": run.last_step,
        "updates": len(scalars),
        "losses": _told(run, scalars, events),
        "loss": _number(loss[-1]) if len(loss) else None,
        "lr": _number(scalars["lr"].iloc[-1]) if len(loss) else None,
        "sparkline": [_number(value) for value in line],
        "nonfinite_losses": int(np.count_nonzero(~np.isfinite(loss))),
        "events": dict(Counter(events["kind"])),
        "ended_by": _ended_by(run, events),
        "damaged": _damaged(events),
        "other_weights": _other_weights(events),
        "last_told": told if is_number(told := run.meta.get("last_step", 0)) else 0,
        "counts": dict(Counter(finding.severity for finding in findings)),
        "worst": _worst(findings[0]) if findings else None,
        "checks": [len(diagnosis.checked), diagnosis.checks] if diagnosis else None,
        "rules_version": rules_version,
        "diagnosed": diagnosis is not None,
    }


def cached_summary(run: Run, diagnose: Callable[[Run], Any] | None = None, rules_version: str = "") -> dict[str, Any]:
    """The run's own summary if these rules made it of the files that are there; else one made here and kept in a cache
    outside the runs folder until the run changes."""
    own = run.summary
    if own is not None and (diagnose is None or _is_of(own, run, rules_version)):
        return own
    key = kept.key(run, rules_version, diagnose is not None, sorted(_NEW))
    summary = kept.recall("summaries", key)
    if summary is None:
        summary = summarize(run, diagnose(run) if diagnose else None, rules_version)
        kept.keep("summaries", key, summary)
    return summary


def _is_of(summary: dict[str, Any], run: Run, rules_version: str) -> bool:
    """By their sizes: a file that was cut off since makes another run."""
    same_rules = summary.get("diagnosed") and summary.get("rules_version") == rules_version
    return bool(same_rules and summary.keys() >= _NEW and summary.get("files") == run.fingerprint()[0])


def _told(run: Run, scalars: Any, events: Any) -> int:
    """Updates whose loss was given to `monitor.step`, be it NaN."""
    if scalars["loss"].isna().all() and "non-finite" not in set(events["kind"]):
        return 0
    return int(np.count_nonzero(~not_told(run, scalars)))


def _ended_by(run: Run, events: Any) -> str:
    """The exception that ended the run, in the words of its event; "" where none did, or where it was resumed since."""
    if run.meta["status"] not in ("failed", "interrupted"):
        return ""
    ends = events[events["kind"].isin(["interrupted", "resumed"])]
    return str(ends["message"].iloc[-1]) if len(ends) and ends["kind"].iloc[-1] == "interrupted" else ""


def _damaged(events: Any) -> list[list]:
    """File, last whole step before it, what is wrong; without what a copy made good."""
    lost = events[(events["kind"] == "damaged") & ~events["message"].str.endswith(MENDED)]
    return lost[["subject", "step", "message"]].to_numpy().tolist()


def _other_weights(events: Any) -> int:
    """Since which step the run was continued with other weights than it had, the last time; 0 if it never was."""
    steps = events.loc[other_weights(events), "step"]
    return int(steps.iloc[-1]) if len(steps) else 0


def _worst(finding: Any) -> dict[str, Any]:
    names = ("kind", "cause", "severity", "first_step", "last_step", "summary")
    return {name: getattr(finding, name) for name in names}


def _number(value: float) -> float | None:
    """JSON has no NaN; the sparkline has a gap there."""
    return float(value) if np.isfinite(value) else None
