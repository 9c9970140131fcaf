"""Where the search for the optimizer's steepest direction starts: against SciPy's generalized eigenproblem."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from diagnostics.curvature import measure, steepest
from diagnostics.curvature.lanczos import Krylov
from diagnostics.curvature.scaling import UNKNOWN
from diagnostics.curvature.steepest import _seen


def problem(size: int, steps: int):
    """A symmetric matrix, an optimizer that scales its coordinates, and a basis of `steps` products."""
    torch.manual_seed(0)
    root = torch.randn(size, size, dtype=torch.float64)
    hessian, weights = root + root.T, torch.rand(size, dtype=torch.float64) ** 4 + 1e-3
    return hessian, dataclasses.replace(UNKNOWN, preconditioner=weights), started(hessian, steps)


def started(hessian, steps: int) -> Krylov:
    krylov = Krylov(lambda v: hessian @ v, torch.empty(len(hessian), dtype=torch.float64), len(hessian) + 1)
    krylov.extend(torch.randn(len(hessian), dtype=torch.float64))
    for _ in range(steps):
        krylov.step()
    return krylov


def products(hessian, scale, vectors):
    """Of the preconditioned matrix."""
    root = scale.preconditioner.rsqrt()
    return vectors * root @ hessian * root


def test_in_a_basis_of_the_whole_space_they_are_the_eigenvectors():
    hessian, scale, krylov = problem(20, 20)
    vectors, _ = _seen(krylov, scale, 3)
    found = scipy.linalg.eigh(hessian.numpy(), np.diag(scale.preconditioner.numpy()))[1][:, ::-1][:, :3]
    expected = torch.tensor(found.copy()).T * scale.preconditioner.sqrt()
    assert torch.allclose((vectors @ expected.T).abs(), torch.eye(3, dtype=torch.float64), atol=1e-6)


def test_in_a_smaller_basis_none_are_steeper_and_their_products_are_known():
    hessian, scale, krylov = problem(40, 8)
    vectors, known = _seen(krylov, scale, 3)
    starts, rows = vectors / scale.preconditioner.sqrt(), krylov.basis[: krylov.done]
    assert torch.dist(starts @ rows.T @ rows, starts) < 1e-8 * starts.norm()  # they lie in the basis
    basis, h, p = rows.numpy(), hessian.numpy(), np.diag(scale.preconditioner.numpy())
    best = scipy.linalg.eigh(basis @ h @ basis.T, basis @ p @ basis.T)[0][::-1][:3]
    assert (vectors * known).sum(1).numpy() == pytest.approx(best)
    assert torch.allclose(known, products(hessian, scale, vectors))


def test_weights_that_the_optimizer_does_not_move_have_no_part():
    hessian, scale, krylov = problem(20, 20)
    frozen = torch.arange(20) < 5
    unmoved = dataclasses.replace(scale, preconditioner=torch.where(frozen, torch.inf, scale.preconditioner))
    assert _seen(krylov, unmoved, 3) is None  # the products known have come through those weights
    hessian[frozen] = hessian[:, frozen] = 0.0
    krylov = started(hessian, 12)
    vectors, known = _seen(krylov, unmoved, 3)
    assert not vectors[:, frozen].any() and not known[:, frozen].any()
    assert torch.allclose(known, products(hessian, unmoved, vectors))
    assert _seen(krylov, dataclasses.replace(scale, preconditioner=torch.full((20,), torch.inf)), 3) is None


def test_a_whole_estimate_under_adam_takes_fewer_products_for_it(monkeypatch):
    """And finds the largest eigenvalue of the Hessian that Adam sees, written out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4))
    x, y = torch.randn(64, 10), torch.randint(0, 4, (64,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def estimate():
        return measure(lambda: F.cross_entropy(model(x), y), model, optimizer, [1e-2], cold=True)

    found = estimate()
    monkeypatch.setattr(steepest, "_seen", lambda *_: None)
    assert found.products < estimate().products - 1
    root = found.scaling.preconditioner.rsqrt()
    exact = torch.linalg.eigvalsh(root * written_out(model, x, y) * root[:, None])[-1]
    assert found.preconditioned == pytest.approx(float(exact), rel=1e-3)


def written_out(model, x, y):
    """The Hessian of the cross-entropy, by torch.func."""
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def loss(flat):
        parts = zip(names, flat.split(sizes), model.parameters(), strict=True)
        return F.cross_entropy(functional_call(model, {n: part.view_as(p) for n, part, p in parts}, (x,)), y)

    return torch.autograd.functional.hessian(loss, nn.utils.parameters_to_vector(model.parameters()).detach())


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
