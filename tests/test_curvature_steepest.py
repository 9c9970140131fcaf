"""Where the search for the optimizer's steepest direction starts: against SciPy's generalized eigenproblem."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from diagnostics.curvature import measure
from diagnostics.curvature.lanczos import Krylov
from diagnostics.curvature.runs import Solver
from diagnostics.curvature.scaling import UNKNOWN
from diagnostics.curvature.steepest import _steepest_of


def problem(size: int, steps: int):
    """A symmetric matrix, an optimizer that scales its coordinates, and a basis of `steps` products."""
    torch.manual_seed(0)
    root = torch.randn(size, size, dtype=torch.float64)
    hessian, weights = root + root.T, torch.rand(size, dtype=torch.float64) ** 4 + 1e-3
    krylov = Krylov(lambda v: hessian @ v, torch.empty(size, dtype=torch.float64), size + 1)
    krylov.extend(torch.randn(size, dtype=torch.float64))
    for _ in range(steps):
        krylov.step()
    return hessian, dataclasses.replace(UNKNOWN, preconditioner=weights), krylov


def test_in_a_basis_of_the_whole_space_it_is_the_direction_itself():
    hessian, scale, krylov = problem(20, 20)
    start = _steepest_of(krylov, scale)
    vector = scipy.linalg.eigh(hessian.numpy(), np.diag(scale.preconditioner.numpy()))[1][:, -1]
    expected = torch.tensor(vector) * scale.preconditioner.sqrt()
    assert start.norm() == pytest.approx(1)
    assert abs(start @ expected) == pytest.approx(1)


def test_in_a_smaller_basis_none_is_steeper():
    hessian, scale, krylov = problem(40, 8)
    start = _steepest_of(krylov, scale) / scale.preconditioner.sqrt()
    rows = krylov.basis[: krylov.done]
    assert torch.dist(start @ rows.T @ rows, start) < 1e-8 * start.norm()  # it lies in the basis
    basis, h, p = rows.numpy(), hessian.numpy(), np.diag(scale.preconditioner.numpy())
    best = scipy.linalg.eigh(basis @ h @ basis.T, basis @ p @ basis.T)[0][-1]
    assert float(start @ hessian @ start) == pytest.approx(best)


def test_weights_that_the_optimizer_does_not_move_have_no_part():
    _, scale, krylov = problem(20, 20)
    frozen = torch.arange(20) < 5
    p = torch.where(frozen, torch.inf, scale.preconditioner)
    start = _steepest_of(krylov, dataclasses.replace(scale, preconditioner=p))
    assert start.isfinite().all() and not start[frozen].any()
    assert _steepest_of(krylov, dataclasses.replace(scale, preconditioner=torch.full_like(p, torch.inf))) is None


def test_a_whole_estimate_under_adam_starts_there(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 4))
    x, y = torch.randn(64, 10), torch.randint(0, 4, (64,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    starts = []
    warm = Solver.warm
    monkeypatch.setattr(Solver, "warm", lambda self, *known: starts.extend(known) or warm(self, *known))
    found = measure(lambda: F.cross_entropy(model(x), y), model, optimizer, [1e-2], cold=True)
    (start,) = starts
    assert abs(start @ found.preconditioned_vector) > 0.3  # a random one has 0.03 of it


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_where_the_last_direction_is_of_no_use_a_quick_estimate_starts_from_the_gradient_too(at):
    """On a quadratic, with weights along its steepest direction so that the gradient points there; or all zero."""
    size = 4000
    torch.manual_seed(0)
    eigenvalues = torch.cat([torch.ones(1), 0.7 * torch.rand(size - 1)])
    model = nn.Linear(size, 1, bias=False)
    model.weight.data.copy_(at * F.one_hot(torch.tensor([0]), size))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss():
        return (eigenvalues * model.weight**2).sum() / 2

    def estimate(**options):
        return measure(loss, model, optimizer, [0.1], full=False, cold=True, **options)

    first = estimate()
    stale = dataclasses.replace(first, preconditioned_vector=F.one_hot(torch.tensor(1), size).float())
    found = estimate(previous=stale)
    assert found.preconditioned == pytest.approx(1.0, rel=1e-2)
    assert (found.products < first.products - 1) == bool(at)
