"""Finds the learning rates of the healthy cross product: `python -m benchmarks.faults.tune_rates` writes rates.json.

For every architecture, optimizer and batch size a grid of factor 2.5 is tried unwatched on two seeds that no benchmark
run uses; the rate with the lowest final loss wins, the smaller one of two within a tenth of each other.
"""

import json
import math
from itertools import product
from multiprocessing import get_context

import torch
from tqdm import tqdm

from .families.healthy import ARCHITECTURES, BATCHES, OPTIMIZERS, RATES, base
from .labels import tail
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


def final_loss(architecture: str, optimizer: str, batch: int | None, lr: float) -> float:
    setup = base(architecture, batch).but(optimizer=spec(optimizer, lr=lr))
    return sum(tail(unwatched(setup, seed)[0].judged) for seed in SEEDS) / len(SEEDS)


def tune(point: tuple[str, str, int | None]) -> tuple[str, float]:
    torch.set_num_threads(1)
    architecture, optimizer, batch = point
    best, winner = math.inf, math.nan
    for lr in (float(f"{FIRST[optimizer] * factor:.2g}") for factor in GRID):
        loss = final_loss(architecture, optimizer, batch, lr)
        if loss < 0.9 * best:
            best, winner = loss, lr
    return f"{architecture}/{optimizer}/{batch or 'full'}", winner


def main() -> None:
    points = list(product(ARCHITECTURES, (*OPTIMIZERS, "nadam"), BATCHES))
    with get_context("spawn").Pool(2) as pool:
        rates = dict(tqdm(pool.imap_unordered(tune, points), total=len(points)))
    RATES.write_text(json.dumps(dict(sorted(rates.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
