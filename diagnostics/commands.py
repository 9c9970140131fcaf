"""What each command of the command line does: options in, text or JSON out, an exit status back.

Heavy imports are in the functions: `--help` answers at once, and listing runs loads no rule.
"""

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diagnostics import terminal

if TYPE_CHECKING:
    from diagnostics.run import Run

CLEAN, ALARM, UNREADABLE = 0, 1, 2
FOLLOW_SECONDS = 1.0


def check(options: argparse.Namespace) -> int:
    """Diagnose runs."""
    from diagnostics.rules import diagnose, verdict
    from diagnostics.run import summarize, warnings

    results, code = [], CLEAN
    for whole in _opened(options.runs):
        if whole.meta["status"] == "broken":
            results.append({"run": whole.path, "status": "broken", "error": whole.meta["error"]})
            code = UNREADABLE
            if not options.json:
                path, error = map(terminal.printable, (whole.path, whole.meta["error"]))
                print(f"{path}: cannot be read\n  {error}\n")
            continue
        run = whole if options.until is None else whole.until(options.until)
        diagnosis = diagnose(run)
        found, told = verdict(summarize(run, diagnosis), run.meta["status"]), warnings(run)
        more = {"alarms": len(diagnosis.alarms), "verdict": asdict(found), "warnings": told}
        results.append(_identity(run) | asdict(diagnosis) | more)
        code = max(code, ALARM if diagnosis.alarms else CLEAN if found.judged else UNREADABLE)
        if not options.json:
            print(_title(run, whole.last_step))
            print("\n".join(terminal.diagnosis_lines(diagnosis, found, told, _colour())) + "\n")
    if options.json:
        _print_json(results)
    return code


def _title(run: "Run", steps: int) -> str:
    name = terminal.paint(terminal.printable(run.meta["name"]), "bold", _colour())
    looked = f"{steps} steps" if run.last_step == steps else f"as it was at step {run.last_step} of {steps}"
    return f"{name}  {terminal.printable(run.path)}  {run.meta['status']}, {looked}"


def show(options: argparse.Namespace) -> int:
    """What a run says about itself and what was recorded."""
    from diagnostics.metrics import TABLES
    from diagnostics.run import load

    run = load(options.run)
    steps = {name: run.steps(name) for name in TABLES}
    tables = [
        {"table": name, "steps": len(at), "first": int(at[0]), "last": int(at[-1])}
        for name, at in steps.items()
        if len(at)
    ]
    events = run.table("events").to_dict("records")
    if options.json:
        _print_json(_identity(run) | {"meta": run.meta, "tables": tables, "events": events})
        return CLEAN
    print(*terminal.verdict_lines(_verdict(run), _colour()), "", *_described(run), sep="\n")
    print(*terminal.columns(("table", "steps", "first", "last"), [list(row.values()) for row in tables]), sep="\n")
    for event in events[-options.events :] if options.events else []:
        print(f"step {event['step']}: {terminal.printable(event['kind'])}: {terminal.printable(event['message'])}")
    return CLEAN


def _described(run: "Run") -> Iterator[str]:
    meta = run.meta
    yield f"{'name':<12}{terminal.printable(meta['name'])}  ({terminal.printable(run.path)})"
    yield f"{'status':<12}{meta['status']}, {run.last_step} steps, created {_created(run) or 'at an unknown time'}"
    for group in meta["hyperparameters"] or [{}]:
        yield f"{'optimizer':<12}{terminal.printable(meta['optimizer'])} {terminal.settings(group)}"
    yield f"{'model':<12}{len(meta['layers'])} parameter tensors, {terminal.number(meta['parameters'])} parameters"
    for key in ("config", "versions"):
        if meta[key]:
            yield f"{key:<12}{terminal.settings(meta[key])}"
    yield ""


def ls(options: argparse.Namespace) -> int:
    """List the runs of a folder, newest first."""
    from diagnostics.run import RunError, runs, unreachable

    named = options.folder or os.environ.get("DIAGNOSTICS_RUNS")
    folder = named or "runs"
    if trouble := unreachable(folder, missing_too=bool(named)):
        raise RunError(f"{folder} cannot be listed ({trouble}). Next: check the path; give a folder of runs.")
    rows = [_row(run) for run in runs(folder)]
    if options.json:
        _print_json(rows)
    elif rows:
        header = ("name", "status", "finding", "steps", "optimizer", "created", "loss")
        names = ("steps", "optimizer", "created")
        shared = Counter(row["name"] for row in rows)
        cells = [
            [
                f"{row['name']} ({os.path.basename(row['run'])})" if shared[row["name"]] > 1 else row["name"],
                row["status"],
                row["verdict"],
                *(terminal.number(row[name]) for name in names),
                _loss(row),
            ]
            for row in rows
        ]
        print(*terminal.columns(header, cells), sep="\n")
    else:
        print(f"{terminal.printable(folder)} holds no runs. Next: record one with diagnostics.watch, or name a folder.")
    return CLEAN


def _row(run: "Run") -> dict[str, Any]:
    from diagnostics.rules import verdict

    row = _identity(run) | {"optimizer": run.meta["optimizer"], "created": _created(run)}
    if run.meta["status"] == "broken":
        nothing = {"steps": None, "worst": None, "verdict": "-", "loss": None, "sparkline": []}
        return row | nothing | {"error": run.meta["error"]}
    summary = _summary(run)
    worst = summary["worst"] or {}
    return row | {
        "steps": summary["steps"],
        "worst": worst.get("kind"),
        "severity": worst.get("severity"),
        "last_step": worst.get("last_step"),
        "verdict": verdict(summary, run.meta["status"]).cell,
        "loss": summary["loss"],
        "sparkline": summary["sparkline"],
    }


def _summary(run: "Run") -> dict[str, Any]:
    from diagnostics.rules import VERSION, diagnose
    from diagnostics.run import cached_summary, summarize

    if run.meta["status"] == "running":  # another one in a moment: nothing to keep
        return summarize(run, diagnose(run), str(VERSION))
    return cached_summary(run, diagnose, str(VERSION))


def _verdict(run: "Run") -> Any:
    from diagnostics.rules import verdict

    return verdict(_summary(run), run.meta["status"])


def tail(options: argparse.Namespace) -> int:
    """The last recorded steps, and with --follow the new ones as they come."""
    from diagnostics.run import load

    run = load(options.run)
    seen = run.last_step
    first = max(1, seen - options.lines + 1)
    _print_steps(run, first, seen, options.json)
    while options.follow and run.meta["status"] == "running":
        time.sleep(FOLLOW_SECONDS)
        run = run.refresh()
        if run.last_step > seen:
            _print_steps(run, seen + 1, run.last_step, options.json)
            seen = run.last_step
    return CLEAN


def _print_steps(run: "Run", first: int, last: int, as_json: bool) -> None:
    """One line a step, what was not measured left out; events where they happened."""
    events = run.table("events", first=first, last=last).to_dict("records")
    for row in run.table("scalars", first=first, last=last).to_dict("records"):
        happened = [event for event in events if event["step"] == row["step"]]
        if as_json:
            print(json.dumps(_plain(row | {"events": happened})), flush=True)
            continue
        values = (f"{terminal.printable(k)} {terminal.number(v)}" for k, v in row.items() if k != "time" and v == v)
        print("  ".join(values), flush=True)
        for event in happened:
            print(f"    {terminal.printable(event['kind'])}: {terminal.printable(event['message'])}", flush=True)


def export(options: argparse.Namespace) -> int:
    """Write a run's tables as files."""
    from diagnostics.run import load
    from diagnostics.run.export import export as write

    run = load(options.run)
    with _writing(options.out, "another folder, --out DIR"):
        counts = write(run, options.out, options.format)
    if options.json:
        _print_json({"folder": options.out, "rows": counts})
    else:
        print(*(f"{options.out}/{name}.{options.format}  {rows} rows" for name, rows in counts.items()), sep="\n")
    return CLEAN


def report(options: argparse.Namespace) -> int:
    """Write a run's diagnosis as one HTML file."""
    from diagnostics.run import load
    from diagnostics.views.report import write

    run = load(options.run)
    with _writing(options.out, "another file"):
        write(run, options.out)
    print(options.out)
    return CLEAN


def import_(options: argparse.Namespace) -> int:
    """Turn another tool's record into a run."""
    from diagnostics.integrations.tensorboard import import_tfevents

    import_tfevents(options.source, options.run)
    print(options.run)
    return CLEAN


def _opened(paths: list[str]) -> Iterator["Run"]:
    """Each run named, and each run of a folder named; what cannot be read as a run with the status `broken`."""
    from diagnostics.run import RunError, load, runs
    from diagnostics.run.catalog import broken

    for path in paths:
        try:
            yield load(path)
        except RunError as error:
            inside = runs(path)
            yield from inside
            if not inside:
                yield broken(path, str(error))


@contextmanager
def _writing(path: str, other: str) -> Iterator[None]:
    from diagnostics.run import RunError

    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}). Next: give {other}.") from error


def _identity(run: "Run") -> dict[str, Any]:
    return {"run": run.path, "name": run.meta["name"], "status": run.meta["status"]}


def _loss(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    return f"{terminal.number(row['loss'])} {terminal.sparkline(row['sparkline'])}" if row["sparkline"] else ""


def _created(run: "Run") -> str | None:
    """`None` where the run does not say it: 0 would read as 1970."""
    seconds = run.meta["created"]
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else None


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinities: they become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, str | int | float | None):  # NumPy's numbers and arrays
        return _plain(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
