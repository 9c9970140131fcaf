"""Estimates that start from the last ones while a network trains: what they cost, and how far off they are."""

import statistics
from typing import Any

import torch

from benchmarks.curvature_tasks import TASKS, Task
from diagnostics.curvature import measure


def follow_training(name: str, seeds: int, estimates: int, every: int = 10) -> dict[str, Any]:
    """Warm-started estimates while the network trains: products spent, and the ratio's error against a tight solve."""
    spent: dict[str, list[float]] = {"ratio": [], "full": [], "error": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        task = TASKS[name](steps=20)
        quick, full = None, None
        for _ in range(estimates):
            batch = task.train(every)
            rates = [group["lr"] for group in task.optimizer.param_groups]

            def estimate(task: Task = task, batch: Any = batch, rates: Any = rates, **options: Any) -> Any:
                return measure(lambda: task.closure(batch), task.model, task.optimizer, rates, **options)

            first = quick is None
            quick, full = estimate(previous=quick, full=False), estimate(previous=full)
            exact = estimate(full=False, cold=True, tolerance=1e-8).stability  # stops at 30 products
            if not first:
                spent["ratio"].append(quick.products)
                spent["full"].append(full.products)
                spent["error"].append(abs(quick.stability / exact - 1))
    result = {
        "ratio products": statistics.mean(spent["ratio"]),
        "ratio median error": statistics.median(spent["error"]),
        "ratio worst error": max(spent["error"]),
        "full products": statistics.mean(spent["full"]),
    }
    print(
        f"\n{TASKS[name].__name__}, warm every {every} updates, {len(spent['ratio'])} estimates: stability ratio "
        f"{result['ratio products']:.1f} products (error median {result['ratio median error']:.1e}, worst "
        f"{result['ratio worst error']:.1e}); full estimate {result['full products']:.1f} products"
    )
    return result
