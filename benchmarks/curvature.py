"""Curvature side by side: this project, hessian-eigenthings, PyHessian, curvlinops with SciPy's eigsh.

    python -m benchmarks.curvature [--quick] [--tasks mlp transformer resnet] [--seeds 3] [--json FILE]

On the same models, batches and machine, in one run: the five largest eigenvalues, and the five largest with the
smallest. Every solver goes through its settings from cheap to dear until its true relative error, against a converged
reference, is at most one per cent for all seeds; that setting's time is the one compared. The unit is the CPU time of
one gradient (forward and backward), timed beside each solve. The floor: the graph, and bare products, as many as exact
Lanczos needs for that error from the same starts; timed as the solvers are. Needs the extra `bench`.
"""

import argparse
import copy
import json
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.curvature_peers import CLOCK, SOLVERS, TOP, Answer, Solver
from benchmarks.curvature_tasks import TASKS, Task
from benchmarks.curvature_warm import follow_training
from diagnostics.curvature import runs
from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.lanczos import Krylov, Ritz
from diagnostics.curvature.layout import Layout
from diagnostics.curvature.operators import DoubleBackward
from diagnostics.curvature.solve import Target

ERROR = 1e-2
RESIDUAL = 1e-3


@dataclass(frozen=True)
class Row:
    """One solver at the setting that met the error (or its last)."""

    solver: str
    setting: str
    wanted: str
    gradients: float
    products: float
    error: float
    met: bool


@dataclass(frozen=True)
class Problem:
    """What every solver is given, the truth, and how exact Lanczos approaches it from each seed's start."""

    task: Task
    reference: np.ndarray
    trajectories: list["Trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """Exact Lanczos after each product from one start."""

    found: list[Ritz]
    chain: list[tuple[float, float]]
    dimension: int

    def until(self, stop: Callable[[Ritz], bool]) -> Ritz:
        return next((ritz for ritz in self.found if stop(ritz)), self.found[-1])

    def sure(self, ritz: Ritz, target: Target) -> bool:
        """Where our own run would stop."""
        chain = self.chain[: len(ritz.values)]
        return (
            target.met(ritz, self.dimension)
            and runs.hidden(chain, self.dimension, ritz, target, runs.HIDDEN_BEYOND) <= target.hidden
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the MLP alone, one seed, every solver: a minute or two")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--solvers", nargs="+", metavar="NAME", help="only these, by the names of the table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="also write all rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")  # the peers' own
    tasks, seeds = (["mlp"], 1) if options.quick else (options.tasks, options.seeds)
    solvers = [s for s in SOLVERS if not options.solvers or s.name in options.solvers]
    everything: dict[str, Any] = {"threads": options.threads, "torch": torch.__version__}
    for name in tasks:
        everything[name] = report(name, seeds, solvers)
    for name in [name for name in tasks if name != "resnet"]:
        everything[f"{name} warm"] = follow_training(name, seeds, estimates=4 if options.quick else 12)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(everything, file, indent=1)


def report(name: str, seeds: int, solvers: Sequence[Solver]) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    task = TASKS[name]()
    parameters = sum(p.numel() for p in task.model.parameters())
    print(f"\n{task.name}, {parameters:,} parameters, loss {float(task.closure().detach()):.3g}")
    print_costs(task)
    reference = converged(task)
    problem = Problem(task, reference, [trajectory(task, seed, reference) for seed in range(seeds)])
    return [vars(row) for smallest in (False, True) for row in compare(problem, solvers, smallest)]


def compare(problem: Problem, solvers: Sequence[Solver], smallest: bool) -> list[Row]:
    wanted = "top five and smallest" if smallest else "top five"
    least = floor(problem, smallest)
    able = [s for s in solvers if s.has_smallest or not smallest]
    rows = [*(cheapest(s, problem, smallest, least.products) for s in able), least]
    rows = [replace(row, wanted=wanted) for row in rows if row]
    peers = [row.gradients for row in rows if row.met and row.solver not in ("this project", "floor")]
    print(f"\n{wanted:30}{'gradients':>10}{'products':>10}{'error':>10}  setting")
    for row in rows:
        print(
            f"{row.solver:30}{row.gradients:10.1f}{row.products:10.1f}{row.error:10.1e}  "
            f"{row.setting}{'' if row.met else '  (error not met)'}"
        )
    if peers and rows[0].met:
        print(
            f"this project / fastest peer: {rows[0].gradients / min(peers):.2f}; "
            f"/ floor: {rows[0].gradients / rows[-1].gradients:.2f}"
        )
    return rows


def cheapest(s: Solver, problem: Problem, smallest: bool, least: float) -> Row | None:
    """The first setting whose worst error over the seeds is small enough, of those that may be."""
    row, seeds = None, range(len(problem.trajectories))
    for setting in hopeful(s, problem, smallest, least):
        solve = partial(s.solve, problem.task, setting, smallest)
        try:
            runs = [beside_a_gradient(problem.task, partial(solve, seed)) for seed in seeds]
        except Exception as error:  # a peer that cannot do this network is a result
            print(f"{s.name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
            return None
        worst = max(error_of(answer, smallest, problem.reference) for answer, _ in runs)
        gradients = statistics.median(ratio for _, ratio in runs)
        products = statistics.mean(answer.products for answer, _ in runs)
        call = s.call if smallest else s.call.split("; ")[0]
        row = Row(s.name, call.format(setting), "", gradients, products, worst, worst <= ERROR)
        if row.met:
            break
    return row


def hopeful(s: Solver, problem: Problem, smallest: bool, least: float) -> list[Any]:
    """The settings to spend time on, from cheap to dear: none with far fewer steps than Lanczos needs, and of our own,
    whose runs are known from the same starts, none that would stop too early. PyHessian's and SciPy's tolerances mean
    something else."""
    if not isinstance(s.settings[0], Target):
        return [x for x in s.settings if not isinstance(x, int) or x >= 0.9 * least]
    products = {}
    for target in s.settings:
        sought = replace(target, smallest=smallest)
        stops = [run.until(lambda ritz, run=run, sought=sought: run.sure(ritz, sought)) for run in problem.trajectories]
        if max(error_of(as_answer(ritz), smallest, problem.reference) for ritz in stops) <= ERROR:
            products[target] = sum(len(ritz.values) for ritz in stops)
    return sorted(products, key=products.__getitem__)


def beside_a_gradient(task: Task, solve: Callable[[], Answer]) -> tuple[Answer, float]:
    """The answer, and its time over that of a gradient just before and just after."""
    before = gradient_seconds(task)
    answer = solve()
    return answer, 2 * answer.seconds / (before + gradient_seconds(task))


def gradient_seconds(task: Task) -> float:
    parameters = list(task.model.parameters())
    return timed(lambda: torch.autograd.grad(task.closure(), parameters), at_least=0.3)[0]


def error_of(answer: Answer, smallest: bool, reference: np.ndarray) -> float:
    found = np.array(answer.largest[:TOP])
    errors = np.abs(found - reference[:TOP]) / np.abs(reference[:TOP])
    if smallest and answer.smallest is not None:
        errors = np.append(errors, abs(answer.smallest - reference[-1]) / abs(reference[-1]))
    return float(errors.max())


def trajectory(task: Task, seed: int, reference: np.ndarray) -> Trajectory:
    """Until both ends are right and more."""
    layout = Layout(list(task.model.parameters()))
    found: list[Ritz] = []
    with undisturbed(task.model):
        krylov = Krylov(DoubleBackward(task.closure, layout), layout.empty(), 96)
        krylov.extend(torch.randn(layout.dimension, generator=torch.Generator().manual_seed(seed)))
        while krylov.products < 95:
            krylov.step()
            found.append(krylov.ritz())
            enough = krylov.done > TOP and error_of(as_answer(found[-1]), True, reference) <= ERROR
            if enough and Target(TOP, True, ERROR / 3).met(found[-1], krylov.dimension):
                break
    return Trajectory(found, krylov.chain, krylov.dimension)


def as_answer(ritz: Ritz) -> Answer:
    return Answer(ritz.values[:TOP].tolist(), float(ritz.values[-1]), len(ritz.values), 0.0)


def floor(problem: Problem, smallest: bool) -> Row:
    """Exact Lanczos that knows when to stop, and costs nothing but its products."""
    stops, ratios = [], []
    for run in problem.trajectories:
        errors_after = [error_of(as_answer(ritz), smallest, problem.reference) for ritz in run.found[TOP:]]
        stop = next((i for i, error in enumerate(errors_after) if error <= ERROR), len(errors_after) - 1)
        stops.append((stop + TOP + 1, errors_after[stop]))
        ratios.append(beside_a_gradient(problem.task, partial(bare_products, problem.task, stops[-1][0]))[1])
    products, worst = statistics.mean(n for n, _ in stops), max(error for _, error in stops)
    return Row(
        "floor", "exact Lanczos, told when to stop", "", statistics.median(ratios), products, worst, worst <= ERROR
    )


def bare_products(task: Task, count: int) -> Answer:
    began = CLOCK()
    layout = Layout(list(task.model.parameters()))
    with undisturbed(task.model):
        hessian, v = DoubleBackward(task.closure, layout), torch.randn(layout.dimension)
        for _ in range(count):
            hessian(v)
    return Answer([], None, count, CLOCK() - began)


def converged(task: Task) -> np.ndarray:
    """The top five and the smallest, to a residual of RESIDUAL of each, which proves an eigenvalue that near.

    In double precision; for ResNet-18, where that takes a quarter of an hour, in single, whose products' own error
    (their asymmetry is a measure of it) is printed beside.
    """
    if sum(p.numel() for p in task.model.parameters()) < 5_000_000:
        x, y = task.batch
        x = x.double() if x.is_floating_point() else x
        task = replace(task, model=copy.deepcopy(task.model).double(), batch=(x, y))
    layout = Layout(list(task.model.parameters()))
    generator = torch.Generator().manual_seed(9)
    with undisturbed(task.model):
        krylov = Krylov(DoubleBackward(task.closure, layout), layout.empty(), 160)  # touched row by row
        krylov.extend(torch.randn(layout.dimension, dtype=layout.dtype, generator=generator))
        residual = np.inf
        while residual > RESIDUAL:
            krylov.step()
            ritz, wanted = krylov.ritz(), [*range(TOP), -1]
            if krylov.done > TOP:
                residual = float((ritz.residuals[wanted] / np.abs(ritz.values[wanted])).max())
    values = ritz.values[wanted]
    print(
        f"reference: {np.round(values, 4).tolist()}, {krylov.products} products in {layout.dtype}, "
        f"residuals up to {residual:.0e}, asymmetry {krylov.defect * krylov.scale / np.abs(values).min():.0e} of each"
    )
    return values


def print_costs(task: Task) -> None:
    layout = Layout(list(task.model.parameters()))
    with undisturbed(task.model):
        hessian, v = DoubleBackward(task.closure, layout), torch.randn(layout.dimension)
        gradient, graph, product, plain = timed(
            lambda: torch.autograd.grad(task.closure(), layout.parameters),
            lambda: DoubleBackward(task.closure, layout),
            lambda: hessian(v),
            pytorch_product(task, layout, v),
        )
    print(
        f"one gradient {1e3 * gradient:.2f} ms; building the graph {graph / gradient:.2f}, a product "
        f"{product / gradient:.2f} gradients ({plain / gradient:.2f} by PyTorch's own double backward)"
    )


def pytorch_product(task: Task, layout: Layout, v: torch.Tensor) -> Callable[[], Any]:
    parameters, directions = layout.parameters, layout.split(v)
    gradients = torch.autograd.grad(task.closure(), parameters, create_graph=True)
    return lambda: torch.autograd.grad(gradients, parameters, directions, retain_graph=True)


def timed(*calls: Callable[[], Any], at_least: float = 1.0) -> list[float]:
    """Median seconds of each, called in turn, over about a second of the first; after one round to warm up."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    while sum(times[0]) < at_least or len(times[0]) < 3:
        for each, call in zip(times, calls, strict=True):
            began = CLOCK()
            call()
            each.append(CLOCK() - began)
    return [statistics.median(each) for each in times]


if __name__ == "__main__":
    main()
