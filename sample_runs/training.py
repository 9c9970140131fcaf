"""The one training loop of the sample runs, and what a recipe hands to it."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import diagnostics
from sample_runs.data import Data


@dataclass(frozen=True)
class Sample:
    """A run to be: `batch` rows an update (`None`: all of them), gradients zeroed before each backward pass if `zero`
    and clipped to norm `clip`, the learning rate multiplied by `factor(step)`. `every` and `curvature_every` are fixed:
    recording again measures the same steps."""

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    data: Data
    steps: int
    batch: int | None = None
    clip: float | None = None
    factor: Callable[[int], float] | None = None
    zero: bool = True
    every: int = 5
    curvature_every: int = 20
    examples: int = 0
    config: dict = field(default_factory=dict)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Summed over the classes, averaged over the rows."""
    return (output - target).square().sum(1).mean()


def batches(data: Data, size: int | None, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches, or rows shuffled anew each epoch."""
    if size is None:
        for _ in range(steps):
            yield data.x, data.y
        return
    generator = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(rows) < size:
            rows = torch.randperm(len(data.x), generator=generator)
        yield data.x[rows[:size]], data.y[rows[:size]]
        rows = rows[size:]


def train(sample: Sample, seed: int, run_dir: Path | None = None) -> list[float]:
    """Train, recorded into `run_dir` if one is given; the loss of every update."""
    model, optimizer = sample.model, sample.optimizer
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    with _watched(sample, seed, run_dir) as monitor:
        for step, (x, y) in enumerate(batches(sample.data, sample.batch, sample.steps, seed), start=1):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (sample.factor(step) if sample.factor else 1.0)
            if sample.zero:
                optimizer.zero_grad()
            loss = sample.loss(model(x), y)
            loss.backward()
            if sample.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), sample.clip)
            optimizer.step()
            if monitor is not None:
                monitor.step(loss, closure=lambda x=x, y=y: sample.loss(model(x), y))
            losses.append(loss.item())
    return losses


def _watched(sample: Sample, seed: int, run_dir: Path | None):
    if run_dir is None:
        return nullcontext()
    config = {"data": sample.data.recipe, "batch": sample.batch or len(sample.data.x), "seed": seed, **sample.config}
    return diagnostics.watch(
        sample.model,
        sample.optimizer,
        run_dir,
        name=run_dir.name,
        config=config,
        every=sample.every,
        curvature_every=sample.curvature_every,
        examples=sample.examples,
        budget=float("inf"),  # every planned measurement is made, however slow the machine
    )
