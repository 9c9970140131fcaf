"""Train and record the sample runs: `python -m sample_runs.record [NAME ...] [--seed 0] [--out DIR]`.

A recipe is a public function of the modules below: seed -> `Sample`; its docstring says what the run shows. The alarms
each run must show stand in `NAME/expected.json`, which is written by hand before the run is recorded and never by this
script.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diagnostics import rules
from diagnostics.run import load, summarize
from sample_runs import cliffs, healthy, loops, plateaux, rates, ravines, saddles
from sample_runs.training import Sample, train

HERE = Path(__file__).parent


def recipes() -> dict[str, Callable[[int], Sample]]:
    """Run name -> recipe, in the order of the lecture."""
    found = {}
    for module in (healthy, saddles, plateaux, ravines, rates, loops, cliffs):
        for name, value in vars(module).items():
            if getattr(value, "__annotations__", None) == {"seed": int, "return": Sample}:
                found[name.replace("_", "-")] = value
    return found


def record(name: str, seed: int, out: Path = HERE) -> Path:
    """Record one run into `out/name`, in place of an earlier recording; `expected.json` stays."""
    run_dir = out / name
    for entry in run_dir.glob("*"):
        if entry.name != "expected.json":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    torch.manual_seed(seed)
    train(recipes()[name](seed), seed, run_dir)
    return run_dir


def sum_up(name: str, out: Path = HERE) -> None:
    """Write the summary of a recorded run as today's rules see it: the list of runs shows those of older rules only
    after it has read all that was recorded."""
    run = load(out / name)
    summary = summarize(run, rules.diagnose(run), str(rules.VERSION)) | {"files": run.fingerprint()[0]}
    (out / name / "summary.json").write_text(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all of {', '.join(recipes())})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the runs (default: beside this script)")
    parser.add_argument("--sum-up", action="store_true", help="leave the recordings, write their summary.json anew")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(recipes())
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are {', '.join(recipes())}")
    torch.set_num_threads(1)
    for name in arguments.names or recipes():
        if arguments.sum_up:
            sum_up(name, arguments.out)
            continue
        start = time.perf_counter()
        path = record(name, arguments.seed, arguments.out)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"{name:34s} {time.perf_counter() - start:5.1f} s  {size / 1e3:6.0f} kB", flush=True)


if __name__ == "__main__":
    main()
