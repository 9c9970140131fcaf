"""Where the search for the optimizer's steepest direction starts: against SciPy's generalized eigenproblem."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from diagnostics.curvature import measure, steepest
from diagnostics.curvature.lanczos import Krylov
from diagnostics.curvature.scaling import UNKNOWN
from diagnostics.curvature.stability import stability_terms
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


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_condition_number_is_of_the_whole_displacement(momentum: float):
    """Also of what of it lies in vectors of the basis that wait for a product, as what momentum adds does."""
    values = 1 / torch.arange(1, 301, dtype=torch.float64)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))[0]
        matrix = q @ torch.diag(values) @ q.T
        w = nn.ParameterList([nn.Parameter(torch.randn(300, generator=generator, dtype=torch.float64))])
        optimizer = torch.optim.SGD(w.parameters(), lr=0.7, momentum=momentum)
        before = w[0].detach().clone()
        for step in range(30):
            before = w[0].detach().clone() if step == 20 else before
            optimizer.zero_grad()
            (w[0] @ matrix @ w[0] / 2).backward()
            optimizer.step()
        u = w[0].detach() - before
        found = measure(lambda: w[0] @ matrix @ w[0] / 2, w, optimizer, [0.7], displacement=[u])  # noqa: B023
        assert found.condition == pytest.approx(float((u @ u) / (u @ matrix @ u)), rel=1e-3)


def test_groups_of_few_weights_have_the_ratio_of_all():
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
        matrix = q @ torch.diag(torch.rand(6, generator=generator, dtype=torch.float64) * 3 + 0.1) @ q.T
        w = nn.ParameterList([nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (2, 4)])
        groups = [{"params": w[:1], "betas": (0.9, 0.999)}, {"params": w[1:], "lr": 0.03, "betas": (0.5, 0.9)}]
        optimizer = torch.optim.Adam(groups, lr=0.01)

        def closure() -> Tensor:
            x = torch.cat(list(w))  # noqa: B023
            return x @ matrix @ x / 2  # noqa: B023

        closure().backward()
        optimizer.step()
        response = torch.cat([term.response for term in stability_terms(optimizer, [0.01, 0.03])]).sqrt()
        truth = float(torch.linalg.eigvalsh(response[:, None] * matrix * response)[-1])
        assert measure(closure, w, optimizer, [0.01, 0.03]).stability == pytest.approx(truth, rel=1e-2)


def test_weights_that_never_had_a_gradient_are_left_out_under_adamax():
    w = nn.ParameterList([nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))])
    optimizer = torch.optim.Adamax(w.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        w[0][0].square().backward()
        optimizer.step()
    found = measure(lambda: w[0].square().sum(), w, optimizer, [0.01])
    term = stability_terms(optimizer, [0.01])[0].response
    assert found.stability == pytest.approx(2 * float(term[0])) and any("left out" in note for note in found.notes)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.ASGD])
def test_an_empty_tensor_among_the_weights(make):
    def ratio(*sizes: int) -> float:
        w = nn.ParameterList([nn.Parameter(torch.ones(size, dtype=torch.float64)) for size in sizes])
        optimizer = make(w.parameters(), lr=0.01)
        sum(p.square().sum() for p in w).backward()
        optimizer.step()
        return measure(lambda: sum(p.square().sum() for p in w), w, optimizer, [0.01]).stability

    assert ratio(2, 0) == pytest.approx(ratio(2)) and ratio(2) > 0


def test_a_search_that_did_not_come_to_the_largest_eigenvalue_gives_no_stability_ratio():
    """Between seven decades of negative ones it cannot be seen in thirty products."""
    torch.manual_seed(0)
    model = nn.Linear(3020, 1, bias=False)
    curvatures = torch.cat([-torch.logspace(-3, 4, 3000), torch.rand(20) * 1e-2])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    estimate = measure(lambda: 0.5 * (curvatures * model.weight**2).sum(), model, optimizer, [0.1], full=False)
    assert estimate.preconditioned_residual > abs(estimate.preconditioned)
    assert np.isnan(estimate.stability) and "the steepest direction" in " ".join(estimate.notes)
