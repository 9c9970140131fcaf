"""The tables a person reads: per family and in total, rates with Wilson 95 % intervals, and the files behind them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from . import scoring
from .scoring import Dropped
from .wilson import interval

GOALS = {
    "right kind": "95 %",
    "right kind, weakest rungs": "60 %",
    "right cause": "85 %",
    "wrong extra alarms a run": "at most 0.2",
    "alarm before ten times the loss": "90 %",
    "false alarms": "at most 2 %",
}


def percent(values: pd.Series) -> str:
    """Mean share over configurations, with its interval."""
    values = values.dropna()
    low, high = interval(float(values.sum()), len(values))
    return f"{100 * values.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}] of {len(values)}" if len(values) else "-"


def steps(values: pd.Series) -> str:
    return f"{values.median():.0f}" if values.notna().any() else "-"


def families(faulty: pd.DataFrame) -> pd.DataFrame:
    """A row a family: ours, then the reference."""

    def summarize(group: pd.DataFrame) -> dict[str, object]:
        return {
            "n": len(group),
            "alarm": f"{100 * group['alarm'].mean():.0f}",
            "right": f"{100 * group['right'].mean():.0f}",
            "of alarms": f"{100 * group['right_of_alarms'].mean():.0f}",
            "cause": f"{100 * group['cause'].mean():.0f}",
            "extra": f"{group['extras'].mean():.2f}",
            "alarm at": steps(group["alarm_at"]),
            "loss shows": steps(group["shown_at"]),
            "ref right": f"{100 * group['reference_right'].mean():.0f}",
            "ref extra": f"{group['reference_extras'].mean():.2f}",
        }

    return pd.DataFrame([{"family": name, **summarize(group)} for name, group in faulty.groupby("family", sort=False)])


def totals(faulty: pd.DataFrame, healthy: pd.DataFrame) -> pd.DataFrame:
    """What the goals are about, ours beside the reference."""
    weakest = faulty[faulty["rung"] == scoring.WEAKEST]
    reference_of_alarms = faulty["reference_right"].where(faulty["reference_alarm"] > 0)
    rows: list[tuple[str, str, str]] = [
        ("alarm on faulty runs", percent(faulty["alarm"]), percent(faulty["reference_alarm"])),
        ("right kind", percent(faulty["right"]), percent(faulty["reference_right"])),
        ("right kind among the alarms", percent(faulty["right_of_alarms"]), percent(reference_of_alarms)),
        ("right kind, weakest rungs", percent(weakest["right"]), percent(weakest["reference_right"])),
        ("right cause", percent(faulty["cause"]), "-"),
        ("right cause where the kind is right", percent(faulty["cause_of_right"]), "-"),
        ("wrong extra alarms a run", f"{faulty['extras'].mean():.2f}", f"{faulty['reference_extras'].mean():.2f}"),
        ("alarm before ten times the loss", percent(faulty.loc[faulty["expected"] == "lr-unstable", "early"]), "-"),
        ("false alarms", percent(healthy["alarm"]), percent(healthy["reference_alarm"])),
        (
            "healthy configurations with any",
            percent((healthy["alarm"] > 0).astype(float)),
            percent((healthy["reference_alarm"] > 0).astype(float)),
        ),
    ]
    return pd.DataFrame(
        [(name, ours, GOALS.get(name, ""), theirs) for name, ours, theirs in rows],
        columns=["", "ours", "goal", "reference"],
    )


def false_alarms(runs: pd.DataFrame) -> pd.Series:
    """Alarms on healthy runs by kind and cause, per hundred runs."""
    healthy = runs[runs["healthy"]]
    alarms = healthy["alarms"].str.split("|").explode()
    return (alarms[alarms != ""].value_counts() / max(1, len(healthy)) * 100).round(2)


def dropped_table(dropped: Sequence[Dropped], sizes: dict[str, int]) -> tuple[pd.DataFrame, list[str]]:
    """Every dropped rung with its reason, and the families that lost more than a fifth."""
    rows = [
        {
            "family": d.case.family,
            "name": d.case.name,
            "rung": d.case.rung,
            "confirmed": f"{d.confirmed}/{d.seeds}",
            "reason": d.reason,
        }
        for d in dropped
    ]
    frame = pd.DataFrame(rows, columns=["family", "name", "rung", "confirmed", "reason"])
    lost = frame["family"].value_counts()
    return frame, [f"{name}: {count} of {sizes[name]}" for name, count in lost.items() if count > sizes[name] / 5]


def section(title: str, chosen: pd.DataFrame, text: Callable[[pd.Series], str]) -> str:
    lines = [f"{r['key']} seed {r['seed']}: {text(r)}" for _, r in chosen.iterrows()]
    return "\n".join([f"## {title} ({len(chosen)})", *lines, ""])


def missed(run: pd.Series) -> str:
    beside = f"info {run['infos'] or '-'}; skipped {run['skipped'] or '-'}"
    return f"wanted {run['expected']}, got {run['alarms'] or 'nothing'} ({beside})  {run['summary']}"


def listing(runs: pd.DataFrame) -> str:
    """Every miss, wrong cause, wrong extra and false alarm, one line each."""
    faulty, healthy = runs[~runs["healthy"]], runs[runs["healthy"]]
    miscaused = faulty[faulty["right"] & ~faulty["cause"]]
    sections = (
        section("False alarms", healthy[healthy["alarm"]], lambda r: f"{r['alarms']}  {r['summary']}"),
        section("Missed", faulty[~faulty["right"]], missed),
        section("Right kind, wrong cause", miscaused, lambda r: f"wanted {r['expected_cause']}, got {r['alarms']}"),
        section(
            "Wrong extra alarms", faulty[faulty["extras"] > 0], lambda r: f"wanted {r['expected']}, got {r['alarms']}"
        ),
        section("Rules that crashed", runs[runs["crashed"] != ""], lambda r: r["crashed"]),
        section("Training changed by watching", runs[runs["bitwise"].eq(False)], lambda r: ""),
    )
    return "\n".join(sections)


def reporting_half(faulty: pd.DataFrame, healthy: pd.DataFrame) -> list[str]:
    """The totals that the goals are about once more, where both halves were run."""
    if faulty["half"].nunique() < 2:
        return []
    alone = totals(*(frame[frame["half"] == "report"] for frame in (faulty, healthy)))
    return [f"The reporting half alone:\n{alone.to_string(index=False)}"]


def write(runs: pd.DataFrame, dropped: Sequence[Dropped], sizes: dict[str, int], out: Path) -> str:
    """CSV files and the report's text."""
    configurations = scoring.by_configuration(runs)
    faulty, healthy = configurations[~configurations["healthy"]], configurations[configurations["healthy"]]
    lost, mend = dropped_table(dropped, sizes)
    table, total = families(faulty), totals(faulty, healthy)
    for name, frame in (
        ("runs", runs),
        ("configurations", configurations),
        ("dropped", lost),
        ("families", table),
        ("totals", total),
    ):
        frame.to_csv(out / f"{name}.csv", index=False)
    (out / "listing.txt").write_text(listing(runs) + "\n")
    parts = [
        f"{len(faulty)} faulty and {len(healthy)} healthy configurations, {len(runs)} runs",
        table.to_string(index=False),
        total.to_string(index=False),
        *reporting_half(faulty, healthy),
        "False alarms per 100 healthy runs:\n" + (false_alarms(runs).to_string() if healthy["alarm"].any() else "none"),
        f"Dropped ({len(lost)}):\n" + lost.to_string(index=False, max_colwidth=110)
        if len(lost)
        else "No rung dropped.",
        "Families to mend (more than a fifth dropped): " + ("; ".join(mend) or "none"),
        f"Details: {out}/listing.txt and *.csv",
    ]
    text = "\n\n".join(parts)
    (out / "report.txt").write_text(text + "\n")
    return text
