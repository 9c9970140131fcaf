"""What watching costs: step time watched over unwatched, paired and interleaved in one run.

    python -m benchmarks.overhead                   # every task and variant, 100 s of training each: an hour
    python -m benchmarks.overhead --seconds 3       # to see that it works
    python -m benchmarks.overhead --tasks mlp --variants watch, again          # ours alone: seven minutes
    python -m benchmarks.overhead --seconds 15 --variants power wandb lightning # peers have no budget to keep

Every variant trains a copy of the same model on the same batches; blocks of a few steps alternate, so that whatever
else the machine does hits all alike. "total" is all watched time over all unwatched time (the promise of the budget),
"median" and "spread" are of the blocks' ratios, "own account" is what the monitor counted itself. A monitor's clock
runs only during its own blocks. A second unwatched copy shows what the comparison can tell: two copies of one model lie
elsewhere in memory, which with convolutions seems to make up to a seventh.
"""

import argparse
import copy
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import diagnostics
from benchmarks import curvature_tasks
from benchmarks.curvature_tasks import Batch

BLOCK_SECONDS = 0.5
Step = Callable[[Tensor, Callable[[], Tensor]], None]


@dataclass
class Variant:
    """One way to watch: `after(loss, closure)` runs after every update; `settle` ends it."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    after: Step = field(default=lambda loss, closure: None)
    settle: Callable[[], None] = field(default=lambda: None)
    monitor: Any = None
    seconds: list[float] = field(default_factory=list)


def nothing(model: nn.Module, optimizer: Any, folder: str) -> Variant:
    return Variant("unwatched", model, optimizer)


def again(model: nn.Module, optimizer: Any, folder: str) -> Variant:
    return Variant("unwatched, again", model, optimizer)


def watched(name: str, curvature: bool, **options: Any) -> Callable[..., Variant]:
    def make(model: nn.Module, optimizer: Any, folder: str) -> Variant:
        monitor = diagnostics.watch(model, optimizer, f"{folder}/{name}", **options)
        after: Step = monitor.step if curvature else lambda loss, closure: monitor.step(loss)
        return Variant(name, model, optimizer, after, monitor.close, monitor)

    return make


def wandb_watch(model: nn.Module, optimizer: Any, folder: str) -> Variant:
    import wandb

    run = wandb.init(mode="offline", dir=folder, project="overhead", settings=wandb.Settings(silent=True))
    run.watch(model, log="all", log_freq=1)
    return Variant("wandb.watch(log_freq=1)", model, optimizer, lambda loss, closure: run.log({}), run.finish)


def lightning_norms(model: nn.Module, optimizer: Any, folder: str) -> Variant:
    """Lightning's `grad_norm`, as its documentation logs it before each step."""
    from lightning.pytorch.utilities import grad_norm

    def after(loss: Tensor, closure: Callable[[], Tensor]) -> None:
        grad_norm(model, 2)["grad_2.0_norm_total"].item()

    return Variant("lightning grad_norm", model, optimizer, after)


def power_iteration(every: int) -> Callable[..., Variant]:
    """Cockpit's HessMaxEV: power iteration until two quotients agree within 1e-3, at most 100, every so many steps."""

    def make(model: nn.Module, optimizer: Any, folder: str) -> Variant:
        steps = 0

        def after(loss: Tensor, closure: Callable[[], Tensor]) -> None:
            nonlocal steps
            if steps % every == 0:
                with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
                    _largest(closure(), list(model.parameters()))
            steps += 1

        return Variant(f"power iteration every {every}", model, optimizer, after)

    return make


def _largest(loss: Tensor, parameters: list[Tensor]) -> float:
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    v = [torch.randn_like(p) for p in parameters]
    previous = 0.0
    for _ in range(100):
        norm = torch.stack([x.square().sum() for x in v]).sum().sqrt()
        v = [x / norm for x in v]
        product = torch.autograd.grad(gradients, parameters, v, retain_graph=True)
        quotient = float(torch.stack([(a * b).sum() for a, b in zip(v, product, strict=True)]).sum())
        if abs(quotient - previous) <= 1e-3 * abs(quotient):
            break
        previous, v = quotient, list(product)
    return quotient


def _variants(wanted: Sequence[str]) -> list[Callable[..., Variant]]:
    """The unwatched one first, then those whose name contains one of `wanted`."""
    found = {
        "unwatched, again": again,
        "watch, no closure": watched("watch, no closure", False),
        "watch, default": watched("watch, default", True),
        "power iteration": power_iteration(64),
    }
    if find_spec("wandb"):
        found["wandb.watch"] = wandb_watch
    if find_spec("lightning"):
        found["lightning grad_norm"] = lightning_norms
    return [nothing, *(make for name, make in found.items() if any(part in name for part in wanted))]


# -- tasks


def mlp() -> tuple[nn.Module, Iterator[Batch]]:
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    return model, _noise((256, 784), 10)


def cnn() -> tuple[nn.Module, Iterator[Batch]]:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10)), _noise((64, 3, 32, 32), 10)


def resnet18() -> tuple[nn.Module, Iterator[Batch]]:
    task = curvature_tasks.resnet(steps=0)
    return task.model, task.batches


def transformer() -> tuple[nn.Module, Iterator[Batch]]:
    task = curvature_tasks.transformer(steps=0)
    return task.model, task.batches


def _noise(shape: tuple[int, ...], classes: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(shape, generator=generator), torch.randint(0, classes, shape[:1], generator=generator)


TASKS: dict[str, Callable[[], tuple[nn.Module, Iterator[Batch]]]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": resnet18,
    "transformer": transformer,
}


# -- timing


def compare(task: str, seconds: float, wanted: Sequence[str] = ("",)) -> list[Variant]:
    """All variants of one task, in alternating blocks, until the unwatched one has trained for `seconds`."""
    torch.manual_seed(0)
    model, batches = TASKS[task]()
    with tempfile.TemporaryDirectory() as folder:
        variants = []
        for make in _variants(wanted):
            own = copy.deepcopy(model)
            variants.append(make(own, torch.optim.SGD(own.parameters(), lr=0.01, momentum=0.9), folder))
        plain = copy.deepcopy(model)
        length = _block_length(Variant("warm-up", plain, torch.optim.SGD(plain.parameters(), lr=0.01)), batches)
        while sum(variants[0].seconds) < seconds:
            block = [next(batches) for _ in range(length)]
            for variant in variants:
                variant.seconds.append(_block(variant, block))
            variants[1:] = variants[2:] + variants[1:2]  # nobody always follows the same one
        for variant in variants:
            variant.settle()
    return variants


def _block_length(warm: Variant, batches: Iterator[Batch]) -> int:
    block = [next(batches) for _ in range(5)]
    _block(warm, block)
    return max(2, round(BLOCK_SECONDS / (_block(warm, block) / 5)))


def _block(variant: Variant, block: list[Batch]) -> float:
    began = time.perf_counter()
    if variant.monitor is not None:
        budget = variant.monitor._budget
        budget._began += began - getattr(budget, "stopped", began)  # its clock stood still in between
    for x, y in block:
        variant.optimizer.zero_grad()
        loss = _loss(variant.model, x, y)
        loss.backward()
        variant.optimizer.step()
        variant.after(loss, lambda x=x, y=y: _loss(variant.model, x, y))
    ended = time.perf_counter()
    if variant.monitor is not None:
        variant.monitor._budget.stopped = ended
    return ended - began


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def report(task: str, variants: list[Variant]) -> None:
    plain = next(variant for variant in variants if variant.name == "unwatched")
    print(f"\n{task}: {1e3 * sum(plain.seconds) / len(plain.seconds):.0f} ms a block, {len(plain.seconds)} blocks")
    print(
        f"| {'variant':<28} | total | median | spread (quartiles) | own account |\n"
        f"|{'-' * 30}|------:|-------:|-------------------:|------------:|"
    )
    for variant in variants:
        if variant is plain:
            continue
        ratios = [a / b for a, b in zip(variant.seconds, plain.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        total = sum(variant.seconds) / sum(plain.seconds)
        counted = f"{1 + variant.monitor._budget.total / sum(plain.seconds):.3f}" if variant.monitor else ""
        print(f"| {variant.name:<28} | {total:5.3f} | {middle:6.3f} | {low:.3f} to {high:.3f} | {counted} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100.0, help="unwatched training a task")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", default=[""], help="only those whose name contains one of these")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    for name in ("wandb", "lightning"):
        if not find_spec(name):
            print(f"{name} is not installed: left out")
    for task in options.tasks:
        report(task, compare(task, options.seconds, options.variants))


if __name__ == "__main__":
    main()
