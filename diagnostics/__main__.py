"""The command line: the diagnosis of recorded runs in a terminal or a CI job, and what is in them.

Only the standard library is imported before a command is known, so that `--help` answers at once.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diagnostics import terminal

if TYPE_CHECKING:
    from diagnostics.run import Run

CLEAN, ALARM, UNREADABLE = 0, 1, 2
FOLLOW_SECONDS = 1.0


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from diagnostics.run import RunError

    try:
        return options.command(options)
    except (RunError, FileNotFoundError, PermissionError) as error:
        print(terminal.printable(error), file=sys.stderr)
        return UNREADABLE
    except BrokenPipeError:  # the reader of a pipe, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLEAN
    except KeyboardInterrupt:
        return 130


def check(options: argparse.Namespace) -> int:
    """Diagnose runs."""
    from diagnostics.rules import diagnose

    results, code = [], CLEAN
    for run in _opened(options.runs):
        if run.meta["status"] == "broken":
            results.append({"run": run.path, "status": "broken", "error": run.meta["error"]})
            code = UNREADABLE
        else:
            diagnosis = diagnose(run if options.until is None else run.until(options.until))
            results.append(_identity(run) | asdict(diagnosis) | {"alarms": len(diagnosis.alarms)})
            code = max(code, ALARM if diagnosis.alarms else CLEAN)
        if not options.json:
            _print_check(run, None if run.meta["status"] == "broken" else diagnosis)
    if options.json:
        _print_json(results)
    return code


def _print_check(run: "Run", diagnosis: Any) -> None:
    colour = _colour()
    if diagnosis is None:
        print(f"{terminal.printable(run.path)}: cannot be read\n  {terminal.printable(run.meta['error'])}\n")
        return
    title = terminal.paint(terminal.printable(run.meta["name"]), "bold", colour)
    print(f"{title}  {terminal.printable(run.path)}  {run.meta['status']}, {run.last_step} steps")
    print("\n".join(terminal.diagnosis_lines(diagnosis, colour)) + "\n")


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
    for key in ("name", "status", "optimizer", "hyperparameters", "config", "parameters", "versions", "error"):
        if run.meta.get(key):
            print(f"{key:<16}{terminal.printable(run.meta[key])}")
    print(f"{'created':<16}{_date(run.meta['created'])}\n{'layers':<16}{len(run.meta['layers'])}")
    print(*terminal.columns(("table", "steps", "first", "last"), [list(row.values()) for row in tables]), sep="\n")
    for event in events[-options.events :] if options.events else []:
        print(f"step {event['step']}: {terminal.printable(event['kind'])}: {terminal.printable(event['message'])}")
    return CLEAN


def ls(options: argparse.Namespace) -> int:
    """List the runs of a folder, newest first."""
    from diagnostics.run import runs

    folder = options.folder or os.environ.get("DIAGNOSTICS_RUNS") or "runs"
    rows = [_row(run) for run in runs(folder)]
    if options.json:
        _print_json(rows)
    elif rows:
        header = ("name", "status", "worst", "steps", "optimizer", "created", "loss")
        cells = [[*(terminal.number(row[name]) for name in header[:-1]), _loss(row)] for row in rows]
        print(*terminal.columns(header, cells), sep="\n")
    else:
        print(f"{terminal.printable(folder)} holds no runs. Next: record one with diagnostics.watch, or name a folder.")
    return CLEAN


def _row(run: "Run") -> dict[str, Any]:
    row = _identity(run) | {"optimizer": run.meta["optimizer"], "created": _date(run.meta["created"])}
    if run.meta["status"] == "broken":
        return row | {"steps": None, "worst": None, "loss": None, "sparkline": [], "error": run.meta["error"]}
    summary = _summary(run)
    worst = summary.get("worst") or {}
    return row | {
        "steps": summary.get("steps"),
        "worst": worst.get("kind"),
        "severity": worst.get("severity"),
        "loss": summary.get("loss"),
        "sparkline": summary.get("sparkline", []),
    }


def _summary(run: "Run") -> dict[str, Any]:
    from diagnostics.run import cached_summary

    if run.meta["status"] == "running":
        return {"steps": run.meta.get("last_step")}
    from diagnostics.rules import VERSION, diagnose

    return cached_summary(run, diagnose, str(VERSION))


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

    counts = write(load(options.run), options.out, options.format)
    if options.json:
        _print_json({"folder": options.out, "rows": counts})
    else:
        print(*(f"{options.out}/{name}.{options.format}  {rows} rows" for name, rows in counts.items()), sep="\n")
    return CLEAN


def report(options: argparse.Namespace) -> int:
    """Write a run's diagnosis as one HTML file."""
    from diagnostics.run import load
    from diagnostics.views.report import write

    write(load(options.run), options.out)
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


def _identity(run: "Run") -> dict[str, Any]:
    return {"run": run.path, "name": run.meta["name"], "status": run.meta["status"]}


def _loss(row: dict[str, Any]) -> str:
    return f"{terminal.number(row['loss'])} {terminal.sparkline(row['sparkline'])}" if row["sparkline"] else ""


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diagnostics", description="Find out why a network does not train.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=epilog)
        added.set_defaults(command=function)
        return added

    def with_json(added: argparse.ArgumentParser) -> None:
        added.add_argument("--json", action="store_true", help="print JSON; NaN and infinities are strings there")

    added = command(
        "check",
        check,
        "diagnose recorded runs: what is wrong, where, since when, and what to change",
        "Exit status: 2 if any run cannot be read, else 1 if any has an alarm, else 0.",
    )
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directory or URL, or a folder of runs")
    added.add_argument("--until", type=int, metavar="STEP", help="diagnose what was known at this step")
    with_json(added)

    added = command("show", show, "show what a run says about itself, its tables and its last events")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--events", type=int, default=10, metavar="N", help="how many events (default: 10)")
    with_json(added)

    added = command("ls", ls, "list the runs of a folder, newest first")
    added.add_argument("folder", nargs="?", metavar="DIR", help="default: $DIAGNOSTICS_RUNS, else ./runs")
    with_json(added)

    added = command("tail", tail, "print the last recorded steps of a run")
    added.add_argument("run", metavar="RUN")
    added.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="how many steps (default: 10)")
    added.add_argument("-f", "--follow", action="store_true", help="go on printing while the run is being written")
    with_json(added)

    added = command("export", export, "write a run's tables as files, one a table")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    added.add_argument("--out", default="export", metavar="DIR", help="folder to write to (default: ./export)")
    with_json(added)

    added = command("import", import_, "turn TensorBoard event files into a run")
    added.add_argument("kind", choices=("tfevents",))
    added.add_argument("source", metavar="SRC", help="folder of event files")
    added.add_argument("run", metavar="RUN", help="run directory to create")

    added = command("report", report, "write a run's diagnosis as one HTML file that needs no network")
    added.add_argument("run", metavar="RUN")
    added.add_argument("out", nargs="?", default="report.html", metavar="FILE", help="default: report.html")
    return parser


if __name__ == "__main__":
    sys.exit(main())
