"""Finds the learning rates of the healthy cross product: `python -m benchmarks.faults.tune_rates` writes rates.json.

For every architecture, optimizer and batch size a grid of factor 2.5 is tried unwatched on two seeds that no benchmark
run uses. The rate with the lowest final loss wins; its smaller neighbour is taken where it is not measurably worse by
the suite's own check, as a careful person would.
"""

import json
from dataclasses import replace
from itertools import product
from multiprocessing import get_context

import torch
from tqdm import tqdm

from .families.healthy import ARCHITECTURES, BATCHES, OPTIMIZERS, RATES, base
from .labels import Pair, tail, worse
from .spec import spec
from .train import unwatched

FIRST = {
    "sgd": 0.02,
    "momentum": 0.004,
    "nesterov": 0.004,
    "rmsprop": 0.0006,
    "adam": 0.0012,
    "adamw": 0.0012,
    "nadam": 0.0012,
}
GRID = [2.5**i for i in range(6)]
SEEDS = (100, 101)


def train(architecture: str, optimizer: str, batch: int | None, lr: float) -> list[Pair]:
    setup = base(architecture, batch).but(optimizer=spec(optimizer, lr=lr))
    return [Pair(*unwatched(setup, seed)) for seed in SEEDS]


def final(pairs: list[Pair]) -> float:
    return sum(tail(pair.trace.judged) for pair in pairs)


def as_good(smaller: list[Pair], best: list[Pair]) -> bool:
    return not any(worse(replace(a, twin=b.trace)).confirmed for a, b in zip(smaller, best, strict=True))


def tune(point: tuple[str, str, int | None]) -> tuple[str, float]:
    torch.set_num_threads(1)
    architecture, optimizer, batch = point
    rates = [float(f"{FIRST[optimizer] * factor:.2g}") for factor in GRID]
    tried = [train(architecture, optimizer, batch, lr) for lr in rates]
    best = min(range(len(rates)), key=lambda i: final(tried[i]))
    if best and as_good(tried[best - 1], tried[best]):
        best -= 1
    return f"{architecture}/{optimizer}/{batch or 'full'}", rates[best]


def main() -> None:
    points = list(product(ARCHITECTURES, (*OPTIMIZERS, "nadam"), BATCHES))
    with get_context("spawn").Pool(2) as pool:
        rates = dict(tqdm(pool.imap_unordered(tune, points), total=len(points)))
    RATES.write_text(json.dumps(dict(sorted(rates.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
