"""What a run's user was warned of while it was recorded, and no rule makes a finding of: how far a diagnosis is of one
whole training."""

from typing import Any

from diagnostics.run.reader import Run

OTHER_WEIGHTS = ", though the weights are not those of "  # what a `resumed` event says besides the step
WARNINGS = {
    "alone", "closure-differs", "damaged", "layers-changed", "loss-not-scalar", "loss-unreadable", "measurement-off",
    "on-finding-failed", "on-flush-failed", "record-refused", "step-missing", "step-without-update",
}  # fmt: skip


def warnings(run: Run, most: int = 5) -> list[str]:
    """As sentences, the latest first."""
    return [_sentence(row.step, row.kind, row.message) for row in _warned(run)[:most].itertuples()]


def _sentence(step: int, kind: str, message: str) -> str:
    if kind == "resumed":
        return (
            f"this run was continued at step {step:,} with other weights than it had: what came before may be of "
            f"another training, and the findings may mix both. It {message}"
        )
    return f"{message} (step {step:,})"


def _warned(run: Run) -> Any:
    """Rows of `events`, the latest of each kind and subject, the latest first."""
    events: Any = run.table("events")
    told = events["kind"].isin(WARNINGS) | other_weights(events)
    told |= (events["kind"] == "measurement-failed") & (events["subject"] == "log")  # what the script asked for
    return events[told].drop_duplicates(["kind", "subject"], keep="last").iloc[::-1]


def other_weights(events: Any) -> Any:
    """Which rows of `events` tell that the run was continued with other weights than it had (T,)."""
    return (events["kind"] == "resumed") & events["message"].str.contains(OTHER_WEIGHTS, regex=False)
