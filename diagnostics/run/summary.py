"""What a list of runs shows without opening a stream: made once at close, or once by the reader for a killed run."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from diagnostics.run import kept
from diagnostics.run.buckets import bucketed
from diagnostics.run.reader import Run

SPARKLINE_POINTS = 60


def summarize(run: Run, diagnosis: Any = None, rules_version: str = "") -> dict[str, Any]:
    """Counts, worst finding, rule version and a sparkline of the loss, as JSON. `diagnosis`: a `rules.Diagnosis`."""
    scalars = run.table("scalars", ["step", "loss", "lr"])
    loss = scalars["loss"].to_numpy()
    line = bucketed(scalars["step"].to_numpy(), loss, count=SPARKLINE_POINTS).last
    findings = diagnosis.findings if diagnosis else ()
    return {
        "steps": run.last_step,
        "loss": _number(loss[-1]) if len(loss) else None,
        "lr": _number(scalars["lr"].iloc[-1]) if len(loss) else None,
        "sparkline": [_number(value) for value in line],
        "nonfinite_losses": int(np.count_nonzero(~np.isfinite(loss))),
        "events": dict(Counter(run.table("events")["kind"])),
        "counts": dict(Counter(finding.severity for finding in findings)),
        "worst": _worst(findings[0]) if findings else None,
        "rules_version": rules_version,
        "diagnosed": diagnosis is not None,
    }


def cached_summary(run: Run, diagnose: Callable[[Run], Any] | None = None, rules_version: str = "") -> dict[str, Any]:
    """The run's own summary if these rules made it; else one made here and kept in a cache outside the runs folder
    until the run changes."""
    own = run.summary
    if own is not None and (diagnose is None or (own.get("diagnosed") and own.get("rules_version") == rules_version)):
        return own
    key = kept.key(run, rules_version, diagnose is not None)
    summary = kept.recall("summaries", key)
    if summary is None:
        summary = summarize(run, diagnose(run) if diagnose else None, rules_version)
        kept.keep("summaries", key, summary)
    return summary


def _worst(finding: Any) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in ("kind", "cause", "severity", "first_step", "summary")}


def _number(value: float) -> float | None:
    """JSON has no NaN; the sparkline has a gap there."""
    return float(value) if np.isfinite(value) else None
