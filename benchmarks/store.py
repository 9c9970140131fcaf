"""What recording costs a training step, and how fast a run opens: this store beside SQLite and JSON lines.

    python -m benchmarks.store            # about four minutes: 100,000 steps, and a run of 1,000,000 steps x 200 layers
    python -m benchmarks.store --quick    # seconds, to see that it works

Per step: ten scalars. Per measured step: eight statistics of 200 layers. "append" is what the training thread waits
for, its turns with the writer thread included; "all threads" is the processor time of the whole process.
"""

import argparse
import json
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diagnostics.run import RunWriter, bucketed, load, runs, summarize

SCALARS = ("time", "loss", "lr", "grad_norm", "update_norm", "weight_norm", "overshoot", "gradient_cosine")
LOGGED = ("accuracy", "validation")
STATISTICS = (*(f"statistic{number}" for number in range(3)), "grad_norm", "weight_norm", "update_norm")
STATISTICS = (*STATISTICS, "silent_fraction", "grad_missing")
LAYERS = [f"blocks.{number // 8}.layer{number % 8}.weight" for number in range(200)]


def row(step: int) -> dict[str, float]:
    return dict.fromkeys((*SCALARS, *LOGGED), 1.0 / step)


class Streams:
    """This store."""

    def __init__(self, folder: Path):
        self.writer = RunWriter(folder / "run", {"name": "benchmark"})
        self.folder = folder

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.writer.append("scalars", step, values)

    def layers(self, step: int, values: dict[str, np.ndarray]) -> None:
        self.writer.append_many("layers", step, LAYERS, values)

    def close(self) -> None:
        self.writer.close("finished")

    def read(self) -> np.ndarray:
        return load(self.folder / "run").table("scalars", ["loss"])["loss"].to_numpy()


class JsonLines:
    """One line a record, flushed every thousand steps."""

    def __init__(self, folder: Path):
        self.path = folder / "run.jsonl"
        self.file = self.path.open("w")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        if step % 1000 == 0:
            self.file.flush()

    def layers(self, step: int, values: dict[str, np.ndarray]) -> None:
        self.file.write(json.dumps({"step": step, **{name: value.tolist() for name, value in values.items()}}) + "\n")

    def close(self) -> None:
        self.file.close()

    def read(self) -> np.ndarray:
        with self.path.open() as file:
            records = (json.loads(line) for line in file)
            return np.array([record["loss"] for record in records if "loss" in record])


class Sqlite:
    """A row a step, a blob a statistic; a transaction every thousand steps, write-ahead log."""

    def __init__(self, folder: Path):
        self.path = folder / "run.sqlite"
        self.database = sqlite3.connect(self.path, isolation_level=None)
        self.database.execute("pragma journal_mode = wal")
        self.database.execute("pragma synchronous = normal")
        columns = ", ".join(f"{name} real" for name in (*SCALARS, *LOGGED))
        self.database.execute(f"create table scalars (step integer primary key, {columns})")
        self.database.execute("create table layers (step integer, name text, value blob)")
        self.database.execute("begin")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        marks = ", ".join("?" * (1 + len(values)))
        self.database.execute(f"insert into scalars values ({marks})", (step, *values.values()))
        if step % 1000 == 0:
            self.database.execute("commit")
            self.database.execute("begin")

    def layers(self, step: int, values: dict[str, np.ndarray]) -> None:
        rows = [(step, name, value.tobytes()) for name, value in values.items()]
        self.database.executemany("insert into layers values (?, ?, ?)", rows)

    def close(self) -> None:
        self.database.execute("commit")
        self.database.close()

    def read(self) -> np.ndarray:
        database = sqlite3.connect(self.path)
        losses = database.execute("select loss from scalars order by step").fetchall()
        database.close()
        return np.array(losses)[:, 0]


def recording(store: type, steps: int, every: int) -> dict[str, float]:
    """Microseconds a step of ten scalars, and what a measured step adds."""
    scalars = _recorded(store, steps, 0)
    both = _recorded(store, steps, every)
    return {
        "append scalars, us": scalars["append"],
        "all threads, us": scalars["cpu"],
        "append layers, us": (both["append"] - scalars["append"]) * every,
        "layers, all threads, us": (both["cpu"] - scalars["cpu"]) * every,
        "read the loss, s": scalars["read"],
        "bytes a step": scalars["bytes"],
    }


def _recorded(store: type, steps: int, every: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp())
    one, values = store(folder), {name: np.random.rand(len(LAYERS)).astype(np.float32) for name in STATISTICS}
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(1, steps + 1):
        one.scalars(step, row(step))
        if every and step % every == 0:
            one.layers(step, values)
    wall = time.perf_counter() - wall
    one.close()
    cpu, began = time.process_time() - cpu, time.perf_counter()
    assert len(one.read()) == steps
    read = time.perf_counter() - began
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder)
    return {"append": wall / steps * 1e6, "cpu": cpu / steps * 1e6, "read": read, "bytes": size / steps}


def record_large(folder: Path, steps: int) -> None:
    """A run of `steps` updates with eight statistics of 200 layers at every tenth, written as a slow training would:
    a flush every thousand steps."""
    writer = RunWriter(folder, {"name": "large", "layers": [{"name": name} for name in LAYERS]})
    values = {name: np.random.rand(len(LAYERS)).astype(np.float32) for name in STATISTICS}
    for step in range(1, steps + 1):
        writer.append("scalars", step, row(step))
        if step % 10 == 0:
            writer.append_many("layers", step, LAYERS, values)
        if step % 1000 == 0:
            writer.flush()
    writer.close("finished")


OPENING = """
import json, resource, sys, time
began = time.perf_counter()
from diagnostics.run import bucketed, load
imported = time.perf_counter()
def page(run):
    for column in ("loss", "lr", "grad_norm"):
        frame = run.table("scalars", ["step", column])
        bucketed(frame["step"].to_numpy(), frame[column].to_numpy())
    steps, _, values = run.matrix("layers", "grad_norm")
    bucketed(steps, values, count=400)
    run.table("events")
run = load(sys.argv[1])
page(run)
cold = time.perf_counter()
page(run)
warm = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
times = {"import, s": imported - began, "cold, s": cold - imported, "warm, s": warm - cold}
print(json.dumps(times | {"peak, MiB": peak}))
"""


def opening(steps: int) -> dict[str, float]:
    """What a page of a large run needs: three scalars, a layer map and the events, in a fresh process."""
    folder = Path(tempfile.mkdtemp())
    record_large(folder / "run", steps)
    out = subprocess.run([sys.executable, "-c", OPENING, folder / "run"], capture_output=True, text=True, check=True)
    size = sum(file.stat().st_size for file in (folder / "run").iterdir())
    shutil.rmtree(folder)
    return json.loads(out.stdout) | {"on disk, MiB": size / 2**20}


def listing(count: int) -> dict[str, float]:
    """A folder of finished runs of a network with 200 layers."""
    folder = Path(tempfile.mkdtemp())
    layer = {"shape": [64, 64], "parameters": 4096, "frozen": False, "tied": [], "module": "Linear", "optimized": True}
    layers = [{"name": name} | layer for name in LAYERS]
    writer = RunWriter(folder / "0", {"name": "0", "layers": layers})
    for step in range(1, 1001):
        writer.append("scalars", step, row(step))
    writer.flush()
    writer.close("finished", summarize(load(folder / "0")))
    for number in range(1, count):
        shutil.copytree(folder / "0", folder / str(number))
    began = time.perf_counter()
    found = runs(folder)
    seconds = time.perf_counter() - began
    assert len(found) == count and all(run.summary["steps"] == 1000 for run in found)
    shutil.rmtree(folder)
    return {"runs": count, "seconds": seconds}


def downsampling(steps: int) -> dict[str, float]:
    """Milliseconds for a million values: ours keeps every NaN in sight, tsdownsample's indices do not count them."""
    from tsdownsample import MinMaxDownsampler

    x, y = np.arange(steps), np.random.default_rng(0).normal(size=steps)
    return {
        "NumPy reduceat, ms": _milliseconds(lambda: bucketed(x, y)),
        "tsdownsample, ms": _milliseconds(lambda: MinMaxDownsampler().downsample(y, n_out=4000)),
    }


def _milliseconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    quick = parser.parse_args().quick
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}")
    for store in (Streams, Sqlite, JsonLines):
        show(store.__name__, recording(store, 2_000 if quick else 100_000, 10))
    show("a large run opens", opening(20_000 if quick else 1_000_000))
    show("a folder is listed", listing(100 if quick else 2_000))
    show("a million values become buckets", downsampling(1_000_000))


def show(title: str, figures: dict[str, float]) -> None:
    print(f"{title:<32}" + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
