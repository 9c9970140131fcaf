"""Curvature solvers of other projects, each as its documentation says, and this project's, behind one call.

A solver is a function (task, setting) -> Answer. Times include everything after the model and the batch exist. All
measure the same Hessian: the mode being trained, attention under the math kernel (without it none but ours can).
"""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.curvature_tasks import Task
from diagnostics.curvature import runs
from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.layout import Layout
from diagnostics.curvature.operators import DoubleBackward
from diagnostics.curvature.solve import Target

TOP = 5
CLOCK = time.process_time  # of all threads: what else runs on the machine does not count


@dataclass(frozen=True)
class Answer:
    """What a solver found, and for how much."""

    largest: list[float]
    smallest: float | None  # None where it was not asked for or cannot be had
    products: int
    seconds: float


@dataclass(frozen=True)
class Solver:
    """`settings` go from cheap to dear; `solve(task, setting, smallest, seed)`."""

    name: str
    call: str  # the documented call, with {} for the setting
    settings: tuple[Any, ...]
    solve: Callable[[Task, Any, bool, int], Answer]
    has_smallest: bool = True


def ours(task: Task, target: Target, smallest: bool, seed: int) -> Answer:
    began = CLOCK()
    layout = Layout([p for p in task.model.parameters() if p.requires_grad])
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(task.model):
        solver = runs.Solver(layout, None, None, seed)
        krylov = solver.basis(DoubleBackward(task.closure, layout), TOP + 1)
        krylov.extend(torch.randn(layout.dimension, generator=generator))
        ritz = solver.run(krylov, replace(target, smallest=smallest))
        krylov.vectors(ritz.coefficients[:, :TOP])
    seconds = CLOCK() - began
    return Answer(ritz.values[:TOP].tolist(), float(ritz.values[-1]) if smallest else None, krylov.products, seconds)


def eigenthings(task: Task, steps: int, smallest: bool, seed: int) -> Answer:
    """Two runs where both ends are wanted: `which` names one."""
    from hessian_eigenthings.algorithms.lanczos import lanczos
    from hessian_eigenthings.operators.hessian import HessianOperator

    began = CLOCK()
    with undisturbed(task.model):
        operator = HessianOperator(task.model, [task.batch], lambda model, batch: task.loss(model(batch[0]), batch[1]))
        top = lanczos(operator, k=TOP, max_iter=steps, which="LA", seed=seed)
        bottom = lanczos(operator, k=1, max_iter=steps, which="SA", seed=seed) if smallest else None
    seconds = CLOCK() - began
    products = top.iterations + (bottom.iterations if bottom else 0)
    return Answer(top.eigenvalues.tolist(), float(bottom.eigenvalues[0]) if bottom else None, products, seconds)


def eigenthings_once(task: Task, steps: int, smallest: bool, seed: int) -> Answer:
    """The tridiagonalization that library makes public for quadrature, eigenvalues taken here: both ends at once."""
    from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal
    from hessian_eigenthings.operators.hessian import HessianOperator

    began = CLOCK()
    with undisturbed(task.model):
        operator = HessianOperator(task.model, [task.batch], lambda model, batch: task.loss(model(batch[0]), batch[1]))
        start = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed))
        found = lanczos_tridiagonal(operator, start, steps)
    off = found.betas[: steps - 1]
    values = torch.linalg.eigvalsh(torch.diag(found.alphas) + torch.diag(off, 1) + torch.diag(off, -1)).flip(0)
    seconds = CLOCK() - began
    return Answer(values[:TOP].tolist(), float(values[-1]) if smallest else None, found.iterations, seconds)


def pyhessian(task: Task, tolerance: float, smallest: bool, seed: int) -> Answer:
    """Power iteration with deflation; it finds the largest in magnitude and offers no smallest."""
    library: Any = importlib.import_module("pyhessian.hessian")  # the package hides it behind its class

    torch.manual_seed(seed)
    products, plain = [0], library.hessian_vector_product

    def counted(*arguments: Any) -> Any:
        products[0] += 1
        return plain(*arguments)

    library.hessian_vector_product = counted
    began = CLOCK()
    try:
        with undisturbed(task.model):
            problem = library.hessian(AsTrained(task.model), task.loss, data=task.batch, cuda=False)
            values, _ = problem.eigenvalues(maxIter=100, tol=tolerance, top_n=TOP)
    finally:
        library.hessian_vector_product = plain
    seconds = CLOCK() - began
    task.model.zero_grad(set_to_none=True)  # its graph hangs on .grad
    return Answer(sorted(values, reverse=True), None, products[0], seconds)


def curvlinops(task: Task, tolerance: float, smallest: bool, seed: int) -> Answer:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    x, y = task.batch
    began = CLOCK()
    with undisturbed(task.model):
        model = Flattened(task.model)
        parameters = list(task.model.parameters())
        data = [(x, y.reshape(-1))]
        operator = HessianLinearOperator(
            model,
            nn.CrossEntropyLoss(),
            parameters,
            data,
            check_deterministic=False,
            num_data=len(y.reshape(-1)),
            batch_size_fn=lambda _: len(y.reshape(-1)),
        ).to_scipy()
        products = [0]

        def counted(v: np.ndarray) -> np.ndarray:
            products[0] += 1
            return operator @ v.astype(np.float32)

        linear = LinearOperator(operator.shape, matvec=counted, dtype=np.float32)
        start = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(np.float32)
        top = eigsh(linear, k=TOP, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
        bottom = None
        if smallest:
            bottom = eigsh(linear, k=1, which="SA", tol=tolerance, v0=start, return_eigenvectors=False)
    seconds = CLOCK() - began
    return Answer(
        sorted(top.tolist(), reverse=True), float(bottom[0]) if bottom is not None else None, products[0], seconds
    )


class AsTrained(nn.Module):
    """PyHessian calls `eval()`, which would give batch norm another Hessian than the one compared."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def eval(self) -> "AsTrained":
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Flattened(nn.Module):
    """One prediction a row, as curvlinops wants it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(0, -2)


TOLERANCES = (0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 6e-3, 3e-3, 1e-3)
STEPS = (*range(8, 30), *range(30, 100, 2))
SOLVERS = (
    Solver(
        "this project",
        "Target(5, tolerance={0.tolerance}, hidden={0.hidden})",
        tuple(Target(TOP, tolerance=t, hidden=chance) for chance in (1.0, 0.3) for t in TOLERANCES),
        ours,
    ),
    Solver(
        "hessian-eigenthings", "lanczos(k=5, which='LA', max_iter={}); lanczos(k=1, which='SA')", STEPS, eigenthings
    ),
    Solver("hessian-eigenthings, one run", "lanczos_tridiagonal(max_iter={}) and eigvalsh", STEPS, eigenthings_once),
    Solver("PyHessian", "eigenvalues(maxIter=100, tol={}, top_n=5)", (1e-2, 1e-3, 1e-4), pyhessian, False),
    Solver(
        "curvlinops + eigsh", "eigsh(k=5, which='LA', tol={}); eigsh(k=1, which='SA')", (0.3, 1e-1, 1e-2), curvlinops
    ),
)
