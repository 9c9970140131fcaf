"""Repeated eigenvalues: the trace with an honest error, and copies that later estimates keep. Against closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics.curvature import measure
from diagnostics.curvature.layout import Layout
from diagnostics.curvature.multiplicity import multiplicities
from diagnostics.curvature.runs import ROWS, Solver


def regression(outputs: int = 10, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(32, 6, dtype=torch.float64)
    return nn.Linear(6, outputs).double(), x, torch.randn(32, outputs, dtype=torch.float64)


def once(x: Tensor, outputs: int) -> np.ndarray:
    """Distinct eigenvalues of the mean squared error of a linear model, descending: each as often as it has outputs."""
    inputs = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1).numpy()
    return np.linalg.eigvalsh(2 / (len(x) * outputs) * inputs.T @ inputs)[::-1]


def spectrum_of(model: nn.Module, closure, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return measure(closure, model, optimizer, [0.01], **options)


def test_the_trace_of_repeated_eigenvalues_is_within_its_error():
    scores, squares = [], []
    for seed in range(20):
        model, x, y = regression(seed=seed)
        found = spectrum_of(model, lambda: F.mse_loss(model(x), y))  # noqa: B023
        values = np.repeat(once(x, 10), 10)
        scores.append((found.trace - values.sum()) / found.trace_error)
        squares.append(found.frobenius**2 / (values**2).sum())
    assert np.mean(np.abs(scores) < 2) >= 0.8 and abs(np.mean(scores)) < 4 / 20**0.5
    assert np.mean(squares) == pytest.approx(1, abs=0.1)


def test_a_bowl_has_all_its_curvature():
    model = nn.ParameterList([nn.Parameter(torch.randn(50, dtype=torch.float64))])
    found = spectrum_of(model, lambda: model[0].square().sum())
    assert found.trace == pytest.approx(100) and found.stable_rank == pytest.approx(50)


def test_a_ridge_below_the_listed_eigenvalues_counts_as_often_as_it_is_there():
    torch.manual_seed(0)
    model, x, y = nn.Linear(500, 1).double(), torch.randn(8, 500).double(), torch.randn(8, 1).double()

    def closure() -> Tensor:
        return F.mse_loss(model(x), y) + 0.1 * sum(p.square().sum() for p in model.parameters())

    found = spectrum_of(model, closure)
    true = float(2 * x.square().sum() / 8 + 2 + 0.2 * 501)
    assert found.trace == pytest.approx(true, rel=1e-3) and found.copies
    assert spectrum_of(model, closure, previous=found, cold=True).trace == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("cold", [[True] * 5, [False] * 5, [False, True, False, True, True]])
def test_every_estimate_lists_the_copies(cold: list[bool]):
    model, x, y = regression()
    last = spectrum_of(model, lambda: F.mse_loss(model(x), y))
    for i, is_cold in enumerate(cold):
        x = x + 0.02 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(i))
        last = spectrum_of(model, lambda: F.mse_loss(model(x), y), previous=last, cold=is_cold)  # noqa: B023
        assert last.eigenvalues == pytest.approx([once(x, 10)[0]] * 5, rel=1e-2) and last.copies


def test_a_weight_tells_how_often_an_eigenvalue_is_repeated():
    """Against draws: of the squared part of a normal vector in an eigenspace of as many dimensions."""
    draws = np.random.default_rng(0).chisquare
    assert np.mean([multiplicities(x)[0] for x in draws(1, 2000)]) == pytest.approx(1, abs=0.02)
    for m in (100, 5000):
        means, variances = np.transpose([multiplicities(x) for x in draws(m, 400)])
        assert means.mean() == pytest.approx(m, rel=0.05)
        assert np.mean(np.abs(means - m) < 2 * np.sqrt(variances)) > 0.9


def test_the_trace_where_the_search_for_copies_fills_the_basis():
    """Each of a hundred eigenvalues ten times: more than the basis has rows."""
    scores = []
    for seed in range(6):
        torch.manual_seed(seed)
        x = torch.randn(500, 100, dtype=torch.float64) * 0.9 ** torch.arange(100)
        model = nn.Linear(100, 10, bias=False).double()
        found = spectrum_of(model, lambda: model(x).square().sum(1).mean())  # noqa: B023
        scores.append((found.trace - 10 * float(2 * x.square().sum() / 500)) / found.trace_error)
    assert np.abs(scores).max() < 3, scores


@pytest.mark.parametrize("values", [[0.8, 0.3, 0.1, 0.03] * 4, [3.0] * 3 + [2.0] * 3 + [1.0] * 2, [-1.0, 2.0, 2.0]])
def test_a_small_space_is_searched_whole(values: list[float]):
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
        w = nn.ParameterList([nn.Parameter(torch.ones(len(values), dtype=torch.float64))])
        matrix = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
        found = spectrum_of(w, lambda: w[0] @ matrix @ w[0] / 2)  # noqa: B023
        np.testing.assert_allclose(found.eigenvalues, sorted(values)[::-1][:5], atol=1e-10)
        assert found.trace == pytest.approx(sum(values)) and found.trace_error == found.missed == 0
        assert found.frobenius == pytest.approx(np.linalg.norm(values))
        assert found.products <= len(values) + 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("dimension", "products"), [(104, 93), (90, 80)])
def test_a_space_with_no_room_for_all_of_it_is_not_completed(dimension: int, products: int):
    """Little of it is left, but the basis has no more rows than memory allows."""
    torch.manual_seed(0)
    half = torch.randn(dimension, dimension, dtype=torch.float64)
    matrix = half + half.T
    solver = Solver(Layout([torch.zeros(dimension, dtype=torch.float64)]), None, None, seed=1)
    krylov = solver.basis(lambda v: matrix @ v)
    krylov.extend(solver.fresh())
    for _ in range(products):
        krylov.step()
    solver._complete(krylov)
    assert krylov.complete == (dimension < ROWS)
