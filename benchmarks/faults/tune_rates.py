"""Finds the learning rates of the healthy cross product: `python -m benchmarks.faults.tune_rates` writes rates.json.

For every architecture, optimizer and batch size a grid of factor 2.5 is tried unwatched on two seeds that no benchmark
run uses. The rate with the lowest final loss wins; its smaller neighbour is taken where that gives up less than a
twentieth of the descent, as a careful person would.
"""

import json
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


def losses(architecture: str, optimizer: str, batch: int | None, lr: float) -> tuple[float, float]:
    """Starting and final loss, averaged over the seeds."""
    setup = base(architecture, batch).but(optimizer=spec(optimizer, lr=lr))
    traces = [unwatched(setup, seed)[0] for seed in SEEDS]
    return sum(t.judged[0] for t in traces) / len(SEEDS), sum(tail(t.judged) for t in traces) / len(SEEDS)


def careful(rates: list[float], starts: list[float], finals: list[float]) -> float:
    best = min(range(len(rates)), key=finals.__getitem__)
    if best and finals[best - 1] <= finals[best] + 0.05 * (starts[best] - finals[best]):
        return rates[best - 1]
    return rates[best]


def tune(point: tuple[str, str, int | None]) -> tuple[str, float]:
    torch.set_num_threads(1)
    architecture, optimizer, batch = point
    rates = [float(f"{FIRST[optimizer] * factor:.2g}") for factor in GRID]
    starts, finals = zip(*(losses(architecture, optimizer, batch, lr) for lr in rates), strict=True)
    return f"{architecture}/{optimizer}/{batch or 'full'}", careful(rates, starts, finals)


def main() -> None:
    points = list(product(ARCHITECTURES, (*OPTIMIZERS, "nadam"), BATCHES))
    with get_context("spawn").Pool(2) as pool:
        rates = dict(tqdm(pool.imap_unordered(tune, points), total=len(points)))
    RATES.write_text(json.dumps(dict(sorted(rates.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
