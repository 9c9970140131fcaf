"""The command line: the diagnosis of recorded runs in a terminal or a CI job, and what is in them.

Only the standard library is imported before a command is known, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable

from diagnostics import __version__, commands, terminal


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from diagnostics.run import RunError

    try:
        return options.command(options)
    except RunError as error:
        print(terminal.printable(error), file=sys.stderr)
        return commands.UNREADABLE
    except ModuleNotFoundError as error:  # reports need the dashboard's packages, imports those of the other tool
        print(f"{error}. Next: pip install 'diagnostics[dashboard,integrations]'", file=sys.stderr)
        return commands.UNREADABLE
    except BrokenPipeError:  # the reader of a pipe, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return commands.CLEAN
    except OSError as error:
        print(f"{terminal.printable(error)}. Next: check the paths and their permissions.", file=sys.stderr)
        return commands.UNREADABLE
    except KeyboardInterrupt:
        return 130


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        number = int(text) if text.strip().lstrip("+-").isdecimal() else least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return number

    return count


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diagnostics", description="Find out why a network does not train.")
    parser.add_argument("--version", action="version", version=f"diagnostics {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=text, description=text, epilog=epilog)
        added.set_defaults(command=function)
        return added

    def with_json(added: argparse.ArgumentParser) -> None:
        added.add_argument("--json", action="store_true", help="print JSON; NaN and infinities are strings there")

    added = command(
        "check",
        commands.check,
        "diagnose recorded runs: what is wrong, where, since when, and what to change",
        "Exit status: 2 if any run cannot be read or holds no update and loss to judge, else 1 if any has an alarm, "
        "else 0.",
    )
    added.add_argument("runs", nargs="+", metavar="RUN", help="run directory or URL, or a folder of runs")
    added.add_argument("--until", type=_count(1), metavar="STEP", help="diagnose what was known at this step")
    with_json(added)

    added = command("show", commands.show, "show what a run says about itself, its tables and its last events")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--events", type=_count(0), default=10, metavar="N", help="how many events (default: 10)")
    with_json(added)

    added = command("ls", commands.ls, "list the runs of a folder, newest first")
    added.add_argument("folder", nargs="?", metavar="DIR", help="default: $DIAGNOSTICS_RUNS, else ./runs")
    with_json(added)

    added = command("tail", commands.tail, "print the last recorded steps of a run")
    added.add_argument("run", metavar="RUN")
    added.add_argument("-n", "--lines", type=_count(1), default=10, metavar="N", help="how many steps (default: 10)")
    added.add_argument("-f", "--follow", action="store_true", help="go on printing while the run is being written")
    with_json(added)

    added = command("export", commands.export, "write a run's tables as files, one a table")
    added.add_argument("run", metavar="RUN")
    added.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    added.add_argument("--out", default="export", metavar="DIR", help="folder to write to (default: ./export)")
    with_json(added)

    added = command("import", commands.import_, "turn TensorBoard event files into a run")
    added.add_argument("kind", choices=("tfevents",))
    added.add_argument("source", metavar="SRC", help="folder of event files")
    added.add_argument("run", metavar="RUN", help="run directory to create")

    added = command("report", commands.report, "write a run's diagnosis as one HTML file that needs no network")
    added.add_argument("run", metavar="RUN")
    added.add_argument("out", nargs="?", default="report.html", metavar="FILE", help="default: report.html")
    return parser


if __name__ == "__main__":
    sys.exit(main())
