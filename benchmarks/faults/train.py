"""One training, watched or not: the loop a user would write, with the wiring faults as its switches.

A run is fixed by its setup and seed alone, so the unwatched training that a label rests on is the one that is watched.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from . import inject, optim
from .data import DATA
from .losses import LOSSES
from .models import MODELS
from .spec import Setup

JUDGEMENTS = 60  # how often the judge looks at all data


@dataclass(frozen=True)
class Wiring:
    """Zero the gradient every so many updates (0: never), average `micro` batches a step, build the optimizer before
    the modules in `stale` are replaced, leave those in `left_out` out of it, or lose the graph of the loss."""

    zero_every: int = 1
    micro: int = 1
    stale: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    detached: bool = False


@dataclass
class Training:
    """Everything a loop needs, built from a setup and a seed."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    x: Tensor
    y: Tensor
    wiring: Wiring
    start: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """What an unwatched training shows: the loss at every update, the judge's number at `steps`."""

    losses: list[float]
    steps: list[int]
    judged: list[float]


def build(setup: Setup, seed: int) -> Training:
    rng = torch.Generator().manual_seed(1000 + seed)
    torch.manual_seed(seed)
    x, y = setup.data.build(DATA, rng)
    model = setup.model.build(MODELS)
    inject.apply(setup.inject, model, x, y)
    criterion = LOSSES[setup.loss]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return criterion(model(x), y)

    wiring = Wiring(**dict(setup.wiring.options))
    optimizer = optim.build(
        setup.optimizer.name,
        dict(setup.optimizer.options),
        model,
        wiring.left_out,
        lambda: optim.sharpness(loss, model, x, y),
    )
    model = replaced(model, wiring.stale)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Training(model, optimizer, loss, x, y, wiring, start)


def replaced(model: nn.Module, stale: tuple[str, ...]) -> nn.Module:
    """A copy of the named modules ("" for the whole model): the optimizer keeps the old parameters."""
    for name in stale:
        if not name:
            return copy.deepcopy(model)
        model.set_submodule(name, copy.deepcopy(model.get_submodule(name)))
    return model


def batches(x: Tensor, y: Tensor, size: int | None, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled passes over the data, the last incomplete batch of each dropped."""
    rng = torch.Generator().manual_seed(2000 + seed)
    while size is None:
        yield x, y
    while True:
        order = torch.randperm(len(x), generator=rng)
        for rows in order[: len(x) // size * size].split(size):
            yield x[rows], y[rows]


def error_rate(output: Tensor, target: Tensor) -> Tensor:
    """Share of wrong answers; a single output is a logit."""
    if output.shape[-1] == 1:
        return ((output > 0) != (target > 0.5)).float().mean()
    return (output.argmax(-1) != target).float().mean()


def judge(setup: Setup, training: Training) -> float:
    """The number by which trainings are compared, over all data, in evaluation mode."""
    criterion = {"error": error_rate, **LOSSES}[setup.loss if setup.judge == "loss" else setup.judge]
    model = training.model
    model.eval()
    with torch.no_grad():
        value = criterion(model(training.x), training.y).item()
    model.train()
    return value


def update(training: Training, chunk: list[tuple[Tensor, Tensor]], step: int, clip: float | None) -> Tensor:
    """One optimizer update from the batches of `chunk`; returns the mean loss."""
    wiring, total = training.wiring, torch.zeros(())
    if wiring.zero_every and (step - 1) % wiring.zero_every == 0:
        training.optimizer.zero_grad()
    for x, y in chunk:
        loss = training.loss(training.model, x, y) / len(chunk)
        if wiring.detached:
            loss = loss.detach().requires_grad_()
        loss.backward()
        total = total + loss.detach()
    if clip is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), clip)
    training.optimizer.step()
    return total


Observe = Callable[[Training, int, Tensor, Callable[[], Tensor]], None]


def run(setup: Setup, training: Training, seed: int, observe: Observe) -> list[float]:
    """Train; `observe` is called after every update with the loss and a closure that recomputes it."""
    stream = batches(training.x, training.y, setup.batch, seed)
    factor = setup.schedule.build(optim.SCHEDULES)
    disturb = setup.disturb.build(inject.BATCH)
    rates = [group["lr"] for group in training.optimizer.param_groups]
    losses = []
    for step in range(1, setup.steps + 1):
        chunk = [disturb(step, *next(stream)) for _ in range(training.wiring.micro)]
        for group, rate in zip(training.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step - 1, setup.steps)
        loss = update(training, chunk, step, setup.clip)
        losses.append(loss.item())
        x, y = chunk[-1]
        observe(training, step, loss, lambda x=x, y=y: training.loss(training.model, x, y))
    return losses


def unwatched(setup: Setup, seed: int, observe: Observe | None = None) -> tuple[Trace, Training]:
    """Train without the monitor, judging now and then (which changes nothing)."""
    training = build(setup, seed)
    every = max(1, setup.steps // JUDGEMENTS)
    steps, judged = [0], [judge(setup, training)]

    def look(training: Training, step: int, loss: Tensor, closure: Callable[[], Tensor]) -> None:
        if step % every == 0 or step == setup.steps:
            steps.append(step)
            judged.append(judge(setup, training))
        if observe:
            observe(training, step, loss, closure)

    return Trace(run(setup, training, seed, look), steps, judged), training


def watched(setup: Setup, seed: int, directory: Path, config: dict) -> list[float]:
    """The same training under `diagnostics.watch`, as a user would call it."""
    import diagnostics

    training = build(setup, seed)
    with diagnostics.watch(
        training.model, training.optimizer, directory, config=config, curvature_every=setup.curvature_every
    ) as monitor:
        return run(setup, training, seed, lambda training, step, loss, closure: monitor.step(loss, closure=closure))
