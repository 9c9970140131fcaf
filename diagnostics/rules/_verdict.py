"""What is said of a run as a whole, in a list, above its diagnosis, in a terminal and in a report: the same everywhere.

Made of the run's summary alone, so that a list opens no stream. "No alarm" is said only of a run of which enough was
looked at; of any other, what is missing.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diagnostics.metrics import TABLES
from diagnostics.rules._words import counted

FEW = 20  # recorded updates, or losses: seven of the checks, plateau and ravine among them, say nothing of fewer
CALL = "call `monitor.step(loss, closure)` after each update"
HARDLY_LEARNED, ROWS_SCALED, WEIGHT_DECAY = "hardly-learned", "rows-scaled", "weight-decay"
NO_TICK = {  # causes of information that none may stand above: what is said instead, and in a cell
    HARDLY_LEARNED: ("and hardly anything learned", "hardly learned"),
    ROWS_SCALED: ("but each example was scaled by itself", "rows scaled"),
    WEIGHT_DECAY: ("but a weight decay may hold the loss up", "weight decay"),
}
Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """`sign`: the severity of the worst alarm, "clean", or "open" where nothing can be said yet. `headline`: a sentence
    without its stop; `cell`: the same in a few words; `notes`: what else has to be known, as sentences; `judged`: not
    where no update or no loss is there to be looked at."""

    sign: Literal["critical", "warning", "clean", "open"]
    headline: str
    cell: str
    notes: tuple[str, ...] = ()
    judged: bool = True


def verdict(summary: Summary, status: str) -> Verdict:
    """`summary`: of a run that was diagnosed, by `run.summarize`; `status`: what the run is now."""
    worst = summary["worst"]
    notes = tuple(_notes(summary))
    if worst is None or worst["severity"] == "info":
        return _without_alarm(summary, status, notes)
    over = _ended(worst)
    since = over or f", since step {worst['first_step']:,}"
    headline = first_clause(worst["summary"]) + (f" ({over.removeprefix(', ')})" if over else "")
    return Verdict(worst["severity"], headline, worst["kind"].replace("-", " ") + since, notes)


def first_clause(text: str) -> str:
    """A headline: what a summary says before its colon or semicolon."""
    return re.split(r"[:;] ", text, maxsplit=1)[0].rstrip(".")


def _ended(worst: Mapping[str, Any]) -> str:
    last = worst.get("last_step")
    return "" if last is None else f", ended at step {last:,}"


def _without_alarm(summary: Summary, status: str, notes: tuple[str, ...]) -> Verdict:
    worst, (made, of), updates = summary["worst"], summary["checks"] or (0, 0), summary["updates"]
    checked = f"{made} of {of} checked, nothing {'wrong' if worst else 'found'}"
    if nothing := _nothing_to_judge(summary):
        return Verdict("open", *nothing, notes, judged=False)
    if (least := min(updates, summary["losses"])) < FEW:
        early = "Too early to judge" if status == "running" else "Too short to judge"
        few = counted(updates, "update") if updates < FEW else f"{least} of {updates:,} losses"
        return Verdict("open", f"{early}: {few} recorded, many checks need {FEW}", f"only {few}", notes)
    if made < of / 2:
        return Verdict("open", f"Too little was measured to judge: {checked}", f"{made} of {of} checked", notes)
    if status == "failed":
        return Verdict("open", f"Training failed: {checked}", "failed, no alarm", notes)
    so_far = " so far" if status == "running" else ""
    if worst and worst.get("cause") in NO_TICK:
        told, cell = NO_TICK[worst["cause"]]
        return Verdict("open", f"No alarm{so_far}, {told}: {made} of {of} checked", f"no alarm, {cell}", notes)
    if since := summary["other_weights"]:
        mixed = f"No alarm{so_far}, but from step {since:,} on with other weights than it had: {checked}"
        return Verdict("open", mixed, "no alarm, other weights", notes)
    known = f" ({worst['kind'].replace('-', ' ')})" if worst else ""
    return Verdict("clean", f"No alarm{so_far}: {checked}", f"no alarm{known}", notes)


def _nothing_to_judge(summary: Summary) -> tuple[str, str] | None:
    """Headline and cell of a run without updates or without losses."""
    if not summary["updates"]:
        if scalars := next((file for file, _, _ in summary["damaged"] if _table(file) == "scalars"), None):
            return f"Nothing can be judged: {scalars} is damaged, and no update can be read", "damaged: no update"
        return f"Nothing to judge yet: no update was recorded; {CALL}", "no update recorded"
    if summary["losses"]:
        return None
    if summary["events"].get("loss-unreadable"):
        return "Nothing to judge yet: what `monitor.step` was given for a loss is no number", "no loss recorded"
    return f"Nothing to judge yet: no loss was recorded; {CALL}", "no loss recorded"


def _notes(summary: Summary) -> Iterator[str]:
    if by := summary["ended_by"]:
        yield f"{by[:1].upper()}{by[1:]}".rstrip(".: ") + "."
    places = Counter(file for file, _, _ in summary["damaged"])
    first = {file: (step, message) for file, step, message in reversed(summary["damaged"])}
    for file, (step, message) in sorted(first.items()):
        if _table(file) not in TABLES:
            yield f"{message}."
            continue
        behind = f"behind step {step:,}" if step else "from its beginning"
        more = f", and in {counted(places[file] - 1, 'more place')}" if places[file] > 1 else ""
        yield f"{file} is damaged {behind}{more}. {_lost(summary, _table(file))} ({message})"


def _lost(summary: Summary, table: str) -> str:
    if table != "scalars":
        return f"What it held of {table} there is lost, unless the file can be restored from a copy."
    left = f"{summary['updates']:,} of {max(summary['steps'], summary['last_told']):,} updates can be read"
    return f"Loss, learning rate and gradient norm there are lost ({left}), unless it can be restored from a copy."


def _table(file: str) -> str:
    return file.split("-")[0]
