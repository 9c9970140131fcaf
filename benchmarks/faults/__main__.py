"""`python -m benchmarks.faults`: train, label, record, diagnose, report.

    --quick                 a subset of the tuning half that fits a CI job (under five minutes)
    --full                  everything, five seeds (about three hours on two cores); looks at the reporting half
    --half tune|report      one half; every look at the reporting half goes to looks.log
    --family NAME           only these families (may be repeated)
    --labels                check the labels only, record and diagnose nothing
    --rescore               diagnose what is recorded in --out, train nothing

A pass that was interrupted goes on where it stopped when it is started again with the same --out.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from . import looks, report, runner, scoring, work
from .families import all_cases
from .spec import Case, half


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="the strongest rungs and a sixth of the healthy runs, one seed"
    )
    size.add_argument("--full", action="store_true", help="both halves, five seeds")
    parser.add_argument("--half", choices=("tune", "report"), default="tune")
    parser.add_argument("--family", action="append", default=[], help="only this family; may be repeated")
    parser.add_argument("--seeds", type=int, default=None, help="number of seeds (default: 1; --full 5)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/faults"), help="folder of labels, runs, scores and tables"
    )
    parser.add_argument("--labels", action="store_true", help="check labels only")
    parser.add_argument("--rescore", action="store_true", help="score recorded runs again, train nothing")
    parser.add_argument("--note", default="", help="why one looks at the reporting half, for looks.log")
    return parser.parse_args(argv)


def quick(cases: Sequence[Case]) -> list[Case]:
    """Of every family the strongest rung, of the healthy ones every sixth."""
    strongest = {case.family: max(c.rung for c in cases if c.family == case.family) for case in cases}
    faulty = {case.family: case for case in reversed(cases) if not case.healthy and case.rung == strongest[case.family]}
    return [*faulty.values(), *[case for case in cases if case.healthy][::6]]


def chosen(options: argparse.Namespace) -> list[Case]:
    cases = [c for c in all_cases() if not options.family or c.family in options.family]
    if not options.full:
        cases = [c for c in cases if half(c) == options.half]
    return quick(cases) if options.quick else cases


def what(options: argparse.Namespace) -> str:
    """The command as far as it matters to what is looked at."""
    size = "--quick" if options.quick else "--full" if options.full else f"--half {options.half}"
    families = " ".join(f"--family {family}" for family in options.family)
    return " ".join(filter(None, [size, families, "--rescore" if options.rescore else ""]))


def main(argv: Sequence[str] | None = None) -> int:
    options, began = arguments(argv), time.perf_counter()
    cases, seeds = chosen(options), range(options.seeds or (5 if options.full else 1))
    if not cases:
        print(f"no configuration in the {options.half} half for {', '.join(options.family)}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    sizes, errors = Counter(case.family for case in cases), {}
    if not options.rescore:
        errors |= runner.run(runner.jobs("label", cases, seeds), options.out, options.jobs, "labels")
    kept, dropped = scoring.sift(cases, seeds, options.out)
    if options.labels:
        lost, mend = report.dropped_table(dropped, sizes)
        print(lost.to_string(index=False, max_colwidth=110))
        print(f"{len(kept)} kept, {len(dropped)} dropped; to mend: {'; '.join(mend) or 'none'}")
        return 1 if errors else 0
    if any(half(case) == "report" for case in kept):
        looks.log(what(options), work.digest(), len(kept), options.note)
    if not options.rescore:
        errors |= runner.run(runner.jobs("record", kept, seeds), options.out, options.jobs, "record")
    pairs = [
        job for job in runner.jobs("score", kept, seeds) if work.path(options.out, "trained", job[1], job[2]).exists()
    ]
    errors |= runner.run(pairs, options.out, options.jobs, "score")
    runs = scoring.table(kept, seeds, options.out)
    if runs.empty:
        print("nothing was scored; see the errors above", file=sys.stderr)
        return 1
    print(report.write(runs, dropped, sizes, options.out))
    print(f"{time.perf_counter() - began:.0f} s, {len(errors)} jobs failed")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
